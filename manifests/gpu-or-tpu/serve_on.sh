# Runs a command where the node has a device, and idles where it has none: sh -c THIS serve-on DEVICE COMMAND ARGUMENT…
#
# DEVICE is a file in the node's /dev, as the pod has it mounted. It may come late: nothing asks the node for an
# accelerator, so a pod may be there before the driver. Its container then has no device of its own: it ends once, and
# Kubernetes starts it again with what the node has by then.
# (Kubernetes fills in a dollar before a parenthesis, and halves two dollars: there is neither here.)
device=$1
shift
trap 'exit 0' TERM INT
if [ -e "$device" ]; then
  exec "$@"
fi
echo "serve-on: there is no $device on this node: idle, another container of the pod serves here"
until [ -e "$device" ]; do
  sleep 5 &
  wait
done
echo "serve-on: $device has come: ending, to be started again with it"
exit 1

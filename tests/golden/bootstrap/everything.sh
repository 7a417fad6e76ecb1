gcloud services enable aiplatform.googleapis.com artifactregistry.googleapis.com cloudbuild.googleapis.com cloudresourcemanager.googleapis.com compute.googleapis.com container.googleapis.com iam.googleapis.com logging.googleapis.com secretmanager.googleapis.com storage.googleapis.com --project=demo-project
gcloud storage buckets create gs://demo-bucket --project=demo-project --location=europe-west4 --uniform-bucket-level-access
gcloud artifacts repositories create gemma-pipelines --project=demo-project --location=europe-west4 --repository-format=docker
gcloud iam service-accounts create runner --project=another-project --display-name='Gemma pipelines'
gcloud iam service-accounts create gemma-pipelines-build --project=demo-project --display-name='Gemma pipelines: builds the component image'
gcloud iam roles create gemmaPipelinesConnect --project=demo-project --title='Gemma pipelines: reach the cluster' --stage=GA --permissions=container.clusters.connect,container.clusters.get,container.clusters.list,resourcemanager.projects.get
gcloud iam roles create gemmaPipelinesBucketPolicy --project=demo-project --title='Gemma pipelines: let serving pods read the bucket' --stage=GA --permissions=storage.buckets.getIamPolicy,storage.buckets.setIamPolicy
gcloud iam roles create gemmaPipelinesCache --project=demo-project --title='Gemma pipelines: Rapid Cache' --stage=GA --permissions=storage.anywhereCaches.create,storage.anywhereCaches.disable,storage.anywhereCaches.get,storage.anywhereCaches.list,storage.anywhereCaches.resume,storage.anywhereCaches.update,storage.bucketOperations.get
gcloud iam roles create gemmaPipelinesBake --project=demo-project --title='Gemma pipelines: bake disk images' --stage=GA --permissions=compute.disks.create,compute.disks.delete,compute.disks.list,compute.disks.setLabels,compute.disks.use,compute.disks.useReadOnly,compute.globalOperations.get,compute.images.create,compute.images.delete,compute.images.get,compute.images.getFromFamily,compute.images.list,compute.images.setLabels,compute.images.useReadOnly,compute.instances.create,compute.instances.delete,compute.instances.get,compute.instances.getSerialPortOutput,compute.instances.list,compute.instances.setLabels,compute.instances.setMetadata,compute.instances.setServiceAccount,compute.instances.setTags,compute.instances.stop,compute.projects.get,compute.regions.get,compute.subnetworks.use,compute.zoneOperations.get
gcloud secrets create hf-token --project=demo-project --replication-policy=automatic
gcloud secrets create api-key --project=demo-project --replication-policy=automatic
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/aiplatform.user --condition=None
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=projects/demo-project/roles/gemmaPipelinesConnect --condition=None
gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/storage.objectUser
gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=projects/demo-project/roles/gemmaPipelinesBucketPolicy
gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=projects/demo-project/roles/gemmaPipelinesCache
gcloud storage buckets add-iam-policy-binding gs://runs-of-all --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/storage.objectUser
gcloud storage buckets add-iam-policy-binding gs://fine-tunes --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/storage.objectViewer
gcloud secrets add-iam-policy-binding hf-token --project=demo-project --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/secretmanager.secretAccessor
gcloud secrets add-iam-policy-binding api-key --project=demo-project --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/secretmanager.secretAccessor
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/logging.viewer --condition=None
gcloud artifacts repositories add-iam-policy-binding mirror --project=demo-project --location=europe-west4 --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/artifactregistry.reader
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=projects/demo-project/roles/gemmaPipelinesBake --condition=None
gcloud iam service-accounts add-iam-policy-binding bake@demo-project.iam.gserviceaccount.com --member=serviceAccount:runner@another-project.iam.gserviceaccount.com --role=roles/iam.serviceAccountUser
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:gemma-pipelines-build@demo-project.iam.gserviceaccount.com --role=roles/logging.logWriter --condition=None
gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member=serviceAccount:gemma-pipelines-build@demo-project.iam.gserviceaccount.com --role=roles/storage.objectViewer
gcloud artifacts repositories add-iam-policy-binding gemma-pipelines --project=demo-project --location=europe-west4 --member=serviceAccount:gemma-pipelines-build@demo-project.iam.gserviceaccount.com --role=roles/artifactregistry.writer
cat TOKEN_FILE | tr -d '\n' | gcloud secrets versions add hf-token --project=demo-project --data-file=-
openssl rand -hex 32 | tr -d '\n' | gcloud secrets versions add api-key --project=demo-project --data-file=-
gemma-pipelines bootstrap -f gemma.yaml --context gemma-pipelines.tgz
cat > build.json <<'EOF'
{
 "steps": [
  {
   "name": "gcr.io/cloud-builders/docker",
   "args": [
    "build",
    "--file",
    "images/components/Dockerfile",
    "--build-arg",
    "PYTHON=europe-west4-docker.pkg.dev/demo-project/mirror/library/python:3.11.14-slim-bookworm",
    "--tag",
    "europe-west4-docker.pkg.dev/demo-project/gemma-pipelines/python-components:0.1.0",
    "--tag",
    "europe-west4-docker.pkg.dev/demo-project/gemma-pipelines/python-components:source-DIGEST",
    "."
   ]
  }
 ],
 "images": [
  "europe-west4-docker.pkg.dev/demo-project/gemma-pipelines/python-components:0.1.0",
  "europe-west4-docker.pkg.dev/demo-project/gemma-pipelines/python-components:source-DIGEST"
 ],
 "tags": [
  "gemma-pipelines",
  "source-DIGEST"
 ],
 "timeout": "1800s",
 "serviceAccount": "projects/demo-project/serviceAccounts/gemma-pipelines-build@demo-project.iam.gserviceaccount.com",
 "options": {
  "logging": "CLOUD_LOGGING_ONLY"
 }
}
EOF
gcloud builds submit gemma-pipelines.tgz --project=demo-project --region=europe-west4 --config=build.json --gcs-source-staging-dir=gs://demo-bucket/builds --suppress-logs

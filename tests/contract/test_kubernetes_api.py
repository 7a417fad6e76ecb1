"""Objects of a Kubernetes API server, with the official client. Runs against a real one, too: see kubernetes_api.py."""

from __future__ import annotations

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.contract.kubernetes_objects import config_map, deployment, pod, refused

pytest_plugins = ["tests.contract.kubernetes_api"]


# -- creating ---------------------------------------------------------------------------------------------------


def test_a_new_object_gets_what_the_server_gives(core: client.CoreV1Api, namespace: str) -> None:
    made = core.create_namespaced_config_map(namespace, config_map("a", colour="red"), field_manager="me")

    assert made.metadata.uid
    assert made.metadata.creation_timestamp
    assert int(made.metadata.resource_version) > 0
    assert made.metadata.namespace == namespace
    [entry] = made.metadata.managed_fields
    assert (entry.manager, entry.operation, entry.api_version) == ("me", "Update", "v1")
    assert entry.fields_v1 == {"f:data": {".": {}, "f:colour": {}}}
    assert core.read_namespaced_config_map("a", namespace).data == {"colour": "red"}


def test_a_name_can_be_generated(core: client.CoreV1Api, namespace: str) -> None:
    body = {"metadata": {"generateName": "run-"}}
    names = {core.create_namespaced_config_map(namespace, body).metadata.name for _ in range(3)}

    assert len(names) == 3
    assert all(name.startswith("run-") and len(name) == len("run-") + 5 for name in names)


def test_a_name_is_given_once(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, config_map("a"))
    with pytest.raises(ApiException) as error:
        core.create_namespaced_config_map(namespace, config_map("a"))

    status = refused(error)
    assert (status["code"], status["reason"]) == (409, "AlreadyExists")
    assert status["message"] == 'configmaps "a" already exists'


def test_a_deployment_is_defaulted(apps: client.AppsV1Api, namespace: str) -> None:
    made = apps.create_namespaced_deployment(namespace, deployment("web"))

    assert made.metadata.generation == 1
    assert made.spec.replicas == 1
    assert made.spec.revision_history_limit == 10
    assert made.spec.progress_deadline_seconds == 600
    assert made.spec.strategy.rolling_update.max_surge == "25%"
    template = made.spec.template.spec
    assert (template.restart_policy, template.termination_grace_period_seconds) == ("Always", 30)
    [container] = template.containers
    assert container.image_pull_policy == "IfNotPresent"
    assert container.ports[0].protocol == "TCP"


def test_a_service_gets_an_address(core: client.CoreV1Api, namespace: str) -> None:
    body = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}
    made = core.create_namespaced_service(namespace, body)

    assert made.spec.type == "ClusterIP"
    assert made.spec.cluster_ip in made.spec.cluster_i_ps
    assert made.spec.ports[0].target_port == 80
    with pytest.raises(ApiException) as error:
        core.patch_namespaced_service("web", namespace, {"spec": {"clusterIP": "10.96.0.99"}})
    assert refused(error)["details"]["causes"][0]["field"] == "spec.clusterIPs[0]"


def test_a_job_is_selected_by_its_uid(api: client.ApiClient, namespace: str) -> None:
    template = {"spec": {**pod("x")["spec"], "restartPolicy": "Never"}}
    made = client.BatchV1Api(api).create_namespaced_job(
        namespace, {"metadata": {"name": "once"}, "spec": {"template": template}}
    )

    uid = made.metadata.uid
    assert made.spec.selector.match_labels == {"batch.kubernetes.io/controller-uid": uid}
    assert made.spec.template.metadata.labels["batch.kubernetes.io/job-name"] == "once"
    assert (made.spec.backoff_limit, made.spec.completions, made.spec.parallelism) == (6, 1, 1)


def test_quantities_come_back_in_canonical_form(core: client.CoreV1Api, namespace: str) -> None:
    resources = {"limits": {"cpu": "1500m", "memory": "2048Mi"}, "requests": {"cpu": "1000m"}}
    body = pod("p")
    body["spec"]["containers"][0]["resources"] = resources
    made = core.create_namespaced_pod(namespace, body)

    assert made.spec.containers[0].resources.limits == {"cpu": "1500m", "memory": "2Gi"}
    assert made.spec.containers[0].resources.requests == {"cpu": "1", "memory": "2Gi"}
    assert made.status.qos_class == "Burstable"


def test_a_secret_is_written_as_text_and_read_as_base64(core: client.CoreV1Api, namespace: str) -> None:
    made = core.create_namespaced_secret(namespace, {"metadata": {"name": "s"}, "stringData": {"token": "hf"}})

    assert made.data == {"token": "aGY="}
    assert made.type == "Opaque"
    assert made.string_data is None


def test_a_dry_run_changes_nothing(core: client.CoreV1Api, namespace: str) -> None:
    made = core.create_namespaced_config_map(namespace, config_map("a"), dry_run="All")

    assert made.metadata.uid
    with pytest.raises(ApiException, match="404"):
        core.read_namespaced_config_map("a", namespace)


def test_nothing_is_created_in_a_missing_namespace(core: client.CoreV1Api) -> None:
    with pytest.raises(ApiException) as error:
        core.create_namespaced_config_map("no-such-namespace", config_map("a"))

    status = refused(error)
    assert (status["code"], status["message"]) == (404, 'namespaces "no-such-namespace" not found')


def test_nothing_is_created_in_a_namespace_that_goes(core: client.CoreV1Api) -> None:
    name = core.create_namespace({"metadata": {"generateName": "contract-"}}).metadata.name
    core.create_namespaced_config_map(name, {"metadata": {"name": "keeps-it", "finalizers": ["example.com/test"]}})
    core.delete_namespace(name)
    assert core.read_namespace(name).status.phase == "Terminating"
    with pytest.raises(ApiException) as error:
        core.create_namespaced_config_map(name, config_map("late"))

    status = refused(error)
    assert (status["code"], status["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    core.patch_namespaced_config_map("keeps-it", name, {"metadata": {"finalizers": None}})


# -- validation -------------------------------------------------------------------------------------------------


def test_every_invalid_field_is_named(apps: client.AppsV1Api, namespace: str) -> None:
    body = deployment("web", replicas=-1)
    body["spec"]["template"]["spec"]["containers"] = [{"name": "Server_", "imagePullPolicy": "Sometimes"}]
    body["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    with pytest.raises(ApiException) as error:
        apps.create_namespaced_deployment(namespace, body)

    status = refused(error)
    assert (status["code"], status["reason"]) == (422, "Invalid")
    causes = {(cause["field"], cause["reason"]) for cause in status["details"]["causes"]}
    assert causes == {
        ("spec.replicas", "FieldValueInvalid"),
        ("spec.template.metadata.labels", "FieldValueInvalid"),
        ("spec.template.spec.containers[0].name", "FieldValueInvalid"),
        ("spec.template.spec.containers[0].image", "FieldValueRequired"),
        ("spec.template.spec.containers[0].imagePullPolicy", "FieldValueNotSupported"),
    }
    assert 'supported values: "Always", "IfNotPresent", "Never"' in status["message"]


@pytest.mark.parametrize(
    ("name", "words"), [("Upper", "RFC 1123 subdomain"), ("a" * 254, "no more than 253"), ("a_b", "RFC 1123")]
)
def test_names_are_dns_names(core: client.CoreV1Api, namespace: str, name: str, words: str) -> None:
    with pytest.raises(ApiException) as error:
        core.create_namespaced_config_map(namespace, config_map(name))

    assert refused(error)["details"]["causes"][0]["field"] == "metadata.name"
    assert words in refused(error)["message"]


def test_labels_have_a_syntax(core: client.CoreV1Api, namespace: str) -> None:
    with pytest.raises(ApiException) as error:
        core.create_namespaced_config_map(namespace, config_map("a", {"ok": "not ok", "long": "x" * 64}))

    causes = [cause["message"] for cause in refused(error)["details"]["causes"]]
    assert any("valid label must be" in message for message in causes)
    assert any("no more than 63" in message for message in causes)


@pytest.mark.parametrize(("mode", "code"), [("Strict", 400), ("Ignore", 201)])
def test_unknown_fields_are_refused_when_strict(api: client.ApiClient, namespace: str, mode: str, code: int) -> None:
    body = deployment("web", replicsa=3)
    query = [("fieldValidation", mode)]
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    if code == 201:
        _, status, headers = api.call_api(
            path, "POST", body=body, query_params=query, auth_settings=["BearerToken"], response_type="object"
        )
        assert (status, headers.get("Warning")) == (201, None)
        return
    with pytest.raises(ApiException) as error:
        api.call_api(path, "POST", body=body, query_params=query, auth_settings=["BearerToken"])
    assert refused(error)["code"] == code
    assert 'strict decoding error: unknown field "spec.replicsa"' in refused(error)["message"]


def test_unknown_fields_are_warned_of_and_dropped(api: client.ApiClient, namespace: str) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    made, _, headers = api.call_api(
        path, "POST", body=deployment("web", replicsa=3), auth_settings=["BearerToken"], response_type="object"
    )

    assert headers["Warning"] == '299 - "unknown field \\"spec.replicsa\\""'
    assert "replicsa" not in made["spec"]


def test_a_wrong_type_is_no_object(apps: client.AppsV1Api, namespace: str) -> None:
    with pytest.raises(ApiException) as error:
        apps.create_namespaced_deployment(namespace, deployment("web", replicas="three"))

    status = refused(error)
    assert (status["code"], status["reason"]) == (400, "BadRequest")
    assert (
        "cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32" in status["message"]
    )


def test_a_selector_is_for_ever(apps: client.AppsV1Api, namespace: str) -> None:
    apps.create_namespaced_deployment(namespace, deployment("web"))
    labels = {"app": "other"}
    change = {"spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}}}}
    with pytest.raises(ApiException) as error:
        apps.patch_namespaced_deployment("web", namespace, change)

    [cause] = refused(error)["details"]["causes"]
    assert cause["field"] == "spec.selector"
    assert cause["message"].endswith("field is immutable")


# -- updating ---------------------------------------------------------------------------------------------------


def test_an_update_of_an_older_version_is_a_conflict(core: client.CoreV1Api, namespace: str) -> None:
    first = core.create_namespaced_config_map(namespace, config_map("a", n="1"))
    core.patch_namespaced_config_map("a", namespace, {"data": {"n": "2"}})
    first.data = {"n": "3"}
    with pytest.raises(ApiException) as error:
        core.replace_namespaced_config_map("a", namespace, first)

    status = refused(error)
    assert (status["code"], status["reason"]) == (409, "Conflict")
    assert "the object has been modified; please apply your changes to the latest version" in status["message"]
    assert core.read_namespaced_config_map("a", namespace).data == {"n": "2"}


def test_an_update_that_changes_nothing_writes_nothing(core: client.CoreV1Api, namespace: str) -> None:
    first = core.create_namespaced_config_map(namespace, config_map("a", n="1"))
    again = core.replace_namespaced_config_map("a", namespace, config_map("a", n="1"))
    patched = core.patch_namespaced_config_map("a", namespace, {"data": {"n": "1"}})

    versions = {each.metadata.resource_version for each in (first, again, patched)}
    assert len(versions) == 1


def test_generation_counts_changes_of_what_is_wanted(apps: client.AppsV1Api, namespace: str) -> None:
    apps.create_namespaced_deployment(namespace, deployment("web"))
    labelled = apps.patch_namespaced_deployment("web", namespace, {"metadata": {"labels": {"a": "b"}}})
    assert labelled.metadata.generation == 1
    reported = apps.patch_namespaced_deployment_status("web", namespace, {"status": {"replicas": 1}})
    assert reported.metadata.generation == 1
    scaled = apps.patch_namespaced_deployment("web", namespace, {"spec": {"replicas": 2}})
    assert scaled.metadata.generation == 2


def test_status_and_spec_are_written_apart(apps: client.AppsV1Api, namespace: str) -> None:
    apps.create_namespaced_deployment(namespace, deployment("web"))
    both = {"spec": {"replicas": 3}, "status": {"replicas": 7}}

    assert apps.patch_namespaced_deployment("web", namespace, both).status.replicas is None
    reported = apps.patch_namespaced_deployment_status("web", namespace, {**both, "spec": {"replicas": 9}})
    assert (reported.spec.replicas, reported.status.replicas) == (3, 7)


def test_scale_is_a_view_of_replicas(apps: client.AppsV1Api, namespace: str) -> None:
    apps.create_namespaced_deployment(namespace, deployment("web"))
    scale = apps.read_namespaced_deployment_scale("web", namespace)
    assert (scale.spec.replicas, scale.status.selector) == (1, "app=web")
    scale.spec.replicas = 4
    assert apps.replace_namespaced_deployment_scale("web", namespace, scale).spec.replicas == 4

    made = apps.read_namespaced_deployment("web", namespace)
    assert made.spec.replicas == 4
    assert made.metadata.generation == 2
    assert "scale" in {entry.subresource for entry in made.metadata.managed_fields}


# -- deleting ---------------------------------------------------------------------------------------------------


def test_deletion_can_ask_for_the_very_object(core: client.CoreV1Api, namespace: str) -> None:
    made = core.create_namespaced_config_map(namespace, config_map("a"))
    for wrong in ({"uid": "another"}, {"resourceVersion": "1"}):
        with pytest.raises(ApiException) as error:
            core.delete_namespaced_config_map("a", namespace, body={"preconditions": wrong})
        assert (refused(error)["code"], refused(error)["reason"]) == (409, "Conflict")
    right = {"uid": made.metadata.uid, "resourceVersion": made.metadata.resource_version}
    answer = core.delete_namespaced_config_map("a", namespace, body={"preconditions": right})

    assert answer.status == "Success"
    assert (answer.details.name, answer.details.uid) == ("a", made.metadata.uid)
    with pytest.raises(ApiException, match="404"):
        core.delete_namespaced_config_map("a", namespace)


def test_a_finalizer_holds_what_is_deleted(core: client.CoreV1Api, namespace: str) -> None:
    body = config_map("a")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    core.create_namespaced_config_map(namespace, body)
    core.delete_namespaced_config_map("a", namespace)
    held = core.read_namespaced_config_map("a", namespace)
    assert held.metadata.deletion_timestamp
    with pytest.raises(ApiException) as error:
        core.patch_namespaced_config_map(
            "a", namespace, {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}
        )
    assert "no new finalizers can be added" in refused(error)["message"]
    core.patch_namespaced_config_map("a", namespace, {"metadata": {"finalizers": None}})

    with pytest.raises(ApiException, match="404"):
        core.read_namespaced_config_map("a", namespace)


@pytest.mark.parametrize(("policy", "finalizer"), [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")])
def test_propagation_is_left_to_the_garbage_collector(
    apps: client.AppsV1Api, namespace: str, policy: str, finalizer: str
) -> None:
    body = deployment("web")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    apps.create_namespaced_deployment(namespace, body)
    apps.delete_namespaced_deployment("web", namespace, propagation_policy=policy)
    held = apps.read_namespaced_deployment("web", namespace)

    assert set(held.metadata.finalizers) >= {"example.com/hold", finalizer}
    apps.patch_namespaced_deployment("web", namespace, {"metadata": {"finalizers": None}})


def test_a_collection_is_deleted_by_selector(core: client.CoreV1Api, namespace: str) -> None:
    for name, run in (("a", "1"), ("b", "1"), ("c", "2")):
        core.create_namespaced_config_map(namespace, config_map(name, {"run": run}))
    core.delete_collection_namespaced_config_map(namespace, label_selector="run=1")

    left = {item.metadata.name for item in core.list_namespaced_config_map(namespace).items}
    assert left - {"kube-root-ca.crt"} == {"c"}

gcloud services enable aiplatform.googleapis.com artifactregistry.googleapis.com cloudbuild.googleapis.com cloudresourcemanager.googleapis.com compute.googleapis.com container.googleapis.com iam.googleapis.com logging.googleapis.com secretmanager.googleapis.com networkservices.googleapis.com storage.googleapis.com --project=demo-project
gcloud storage buckets create gs://demo-bucket --project=demo-project --location=us-central1 --uniform-bucket-level-access
gcloud compute networks subnets create gemma-proxies --project=demo-project --region=us-central1 --network=$(gcloud container clusters describe gemma --location=us-central1 --project=demo-project --format='value(networkConfig.network)') --range=10.129.0.0/23 --purpose=REGIONAL_MANAGED_PROXY --role=ACTIVE
gcloud artifacts repositories create gemma-pipelines --project=demo-project --location=us-central1 --repository-format=docker
gcloud iam service-accounts create gemma-pipelines --project=demo-project --display-name='Gemma pipelines'
gcloud iam service-accounts create gemma-pipelines-build --project=demo-project --display-name='Gemma pipelines: builds the component image'
gcloud iam roles create gemmaPipelinesConnect --project=demo-project --title='Gemma pipelines: reach the cluster' --stage=GA --permissions=container.clusters.connect,container.clusters.get,container.clusters.list,resourcemanager.projects.get
gcloud iam roles create gemmaPipelinesBucketPolicy --project=demo-project --title='Gemma pipelines: let serving pods read the bucket' --stage=GA --permissions=storage.buckets.getIamPolicy,storage.buckets.setIamPolicy
gcloud iam roles create gemmaPipelinesProxies --project=demo-project --title='Gemma pipelines: see the proxy-only subnet' --stage=GA --permissions=compute.subnetworks.list
gcloud iam roles create gemmaPipelinesProxySubnet --project=demo-project --title='Gemma pipelines: make the proxy-only subnet' --stage=GA --permissions=compute.networks.updatePolicy,compute.regionOperations.get,compute.subnetworks.create
gcloud iam roles create gke.gcsfuse.profileUser --project=demo-project --title='GKE: GCS FUSE profiles' --stage=GA --permissions=storage.objects.list,storage.buckets.get,storage.anywhereCaches.create,storage.anywhereCaches.get,storage.anywhereCaches.list,storage.anywhereCaches.update
gcloud secrets create hf-token --project=demo-project --replication-policy=automatic
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:gemma-pipelines@demo-project.iam.gserviceaccount.com --role=roles/aiplatform.user --condition=None
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:gemma-pipelines@demo-project.iam.gserviceaccount.com --role=projects/demo-project/roles/gemmaPipelinesConnect --condition=None
gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member=serviceAccount:gemma-pipelines@demo-project.iam.gserviceaccount.com --role=roles/storage.objectUser
gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member=serviceAccount:gemma-pipelines@demo-project.iam.gserviceaccount.com --role=projects/demo-project/roles/gemmaPipelinesBucketPolicy
gcloud secrets add-iam-policy-binding hf-token --project=demo-project --member=serviceAccount:gemma-pipelines@demo-project.iam.gserviceaccount.com --role=roles/secretmanager.secretAccessor
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:gemma-pipelines@demo-project.iam.gserviceaccount.com --role=projects/demo-project/roles/gemmaPipelinesProxies --condition=None
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:gemma-pipelines@demo-project.iam.gserviceaccount.com --role=projects/demo-project/roles/gemmaPipelinesProxySubnet --condition=None
gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:gemma-pipelines-build@demo-project.iam.gserviceaccount.com --role=roles/logging.logWriter --condition=None
gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member=serviceAccount:gemma-pipelines-build@demo-project.iam.gserviceaccount.com --role=roles/storage.objectViewer
gcloud artifacts repositories add-iam-policy-binding gemma-pipelines --project=demo-project --location=us-central1 --member=serviceAccount:gemma-pipelines-build@demo-project.iam.gserviceaccount.com --role=roles/artifactregistry.writer
cat TOKEN_FILE | tr -d '\n' | gcloud secrets versions add hf-token --project=demo-project --data-file=-
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
    "--tag",
    "us-central1-docker.pkg.dev/demo-project/gemma-pipelines/python-components:0.1.0",
    "--tag",
    "us-central1-docker.pkg.dev/demo-project/gemma-pipelines/python-components:source-DIGEST",
    "."
   ]
  }
 ],
 "images": [
  "us-central1-docker.pkg.dev/demo-project/gemma-pipelines/python-components:0.1.0",
  "us-central1-docker.pkg.dev/demo-project/gemma-pipelines/python-components:source-DIGEST"
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
gcloud builds submit gemma-pipelines.tgz --project=demo-project --region=us-central1 --config=build.json --gcs-source-staging-dir=gs://demo-bucket/builds --suppress-logs

gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources create my-study --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --node-count=2 --node-prefix=my-study --spot --internal-ips --quiet --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources scp '$HOME/.cache/jaxift/tpu/my-study/jaxift_source.tar.gz' '$CHECKOUT/tpu_scripts/host/jaxift_on_host.sh' my-study: --node=all --worker=all --tunnel-through-iap --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh install 3.12' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh status' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh status' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh start --project my-project -- run configs/study.yaml --run-dir gs://bucket/run' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh status' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh start --project my-project -- run configs/study.yaml --run-dir gs://bucket/run' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh status' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources delete my-study --force --quiet --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources create my-study --accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --node-count=2 --node-prefix=my-study --spot --internal-ips --quiet --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources scp '$HOME/.cache/jaxift/tpu/my-study/jaxift_source.tar.gz' '$CHECKOUT/tpu_scripts/host/jaxift_on_host.sh' my-study: --node=all --worker=all --tunnel-through-iap --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh install 3.12' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh status' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh start --project my-project -- run configs/study.yaml --run-dir gs://bucket/run' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=0 --tunnel-through-iap '--command=bash jaxift_on_host.sh log 20' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources ssh my-study --node=all --worker=all --tunnel-through-iap '--command=bash jaxift_on_host.sh stop 60' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources delete my-study --force --quiet --project=my-project --zone=us-east5-b
gcloud compute tpus queued-resources list '--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())' --project=my-project --zone=us-east5-b

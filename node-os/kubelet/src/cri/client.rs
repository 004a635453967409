//! The CRI client: one lazily connected channel, one method a call.

use super::*;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_prost::ProstCodec;

/// Calls that only read or that the runtime answers at once.
const SHORT: Duration = Duration::from_secs(20);
/// Creating a sandbox runs the CNI plugins; creating a container unpacks nothing but may wait for the disk.
const LONG: Duration = Duration::from_secs(240);
/// Largest answer taken from the runtime.
const MAX_ANSWER: usize = 16 << 20;

/// A call to the runtime that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct CriError {
    /// gRPC code.
    pub code: tonic::Code,
    /// What the runtime said.
    pub message: String,
}

impl CriError {
    /// The thing asked about does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        self.code == tonic::Code::NotFound
    }

    /// The runtime does not know the call.
    pub fn is_unimplemented(&self) -> bool {
        self.code == tonic::Code::Unimplemented
    }
}

impl From<tonic::Status> for CriError {
    fn from(status: tonic::Status) -> Self {
        CriError { code: status.code(), message: status.message().to_string() }
    }
}

/// A handle to the runtime; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cri {
    channel: Channel,
}

/// Path of a `unix://` endpoint or a plain path.
pub fn socket_path(endpoint: &str) -> &str {
    endpoint.strip_prefix("unix://").unwrap_or(endpoint)
}

/// A gRPC channel to a unix socket, connected when first used and again when it broke.
pub fn unix_channel(endpoint: &str) -> Channel {
    let path = socket_path(endpoint).to_string();
    // The URI is never resolved: the connector ignores it.
    Endpoint::from_static("http://runtime.invalid").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

impl Cri {
    /// A client of the runtime that listens at `endpoint`.
    pub fn new(endpoint: &str) -> Self {
        Cri { channel: unix_channel(endpoint) }
    }

    async fn call<Q, A>(&self, path: &'static str, request: Q, limit: Option<Duration>) -> Result<A, CriError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let work = async {
            grpc.ready().await.map_err(|e| CriError {
                code: tonic::Code::Unavailable,
                message: format!("the container runtime does not answer: {}", crate::chain(&e)),
            })?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            let answer = grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await?;
            Ok(answer.into_inner())
        };
        match limit {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
                Err(CriError {
                    code: tonic::Code::DeadlineExceeded,
                    message: format!("the container runtime did not answer {path} within {} s", limit.as_secs()),
                })
            }),
        }
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<VersionResponse, CriError> {
        self.call("/runtime.v1.RuntimeService/Version", VersionRequest { version: "v1".into() }, Some(SHORT)).await
    }

    /// Whether runtime and network are ready.
    pub async fn status(&self) -> Result<StatusResponse, CriError> {
        self.call("/runtime.v1.RuntimeService/Status", StatusRequest { verbose: false }, Some(SHORT)).await
    }

    /// Makes a sandbox, with its network; its id.
    pub async fn run_pod_sandbox(&self, config: PodSandboxConfig, handler: &str) -> Result<String, CriError> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.into() };
        let answer: RunPodSandboxResponse =
            self.call("/runtime.v1.RuntimeService/RunPodSandbox", request, Some(LONG)).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Stops a sandbox and all that runs in it; one that is gone is stopped.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.into() };
        gone_is_fine(self.call::<_, ()>("/runtime.v1.RuntimeService/StopPodSandbox", request, Some(LONG)).await)
    }

    /// Removes a sandbox and its containers.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        gone_is_fine(self.call::<_, ()>("/runtime.v1.RuntimeService/RemovePodSandbox", request, Some(LONG)).await)
    }

    /// A sandbox with its addresses. With `verbose`, `info` holds the runtime's own JSON.
    pub async fn pod_sandbox_status(&self, id: &str, verbose: bool) -> Result<PodSandboxStatusResponse, CriError> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose };
        self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request, Some(SHORT)).await
    }

    /// Sandboxes that match.
    pub async fn list_pod_sandbox(&self, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>, CriError> {
        let request = ListPodSandboxRequest { filter };
        let answer: ListPodSandboxResponse =
            self.call("/runtime.v1.RuntimeService/ListPodSandbox", request, Some(SHORT)).await?;
        Ok(answer.items)
    }

    /// Makes a container in a sandbox; its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer: CreateContainerResponse =
            self.call("/runtime.v1.RuntimeService/CreateContainer", request, Some(LONG)).await?;
        Ok(answer.container_id)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let request = StartContainerRequest { container_id: id.into() };
        self.call("/runtime.v1.RuntimeService/StartContainer", request, Some(LONG)).await
    }

    /// Stops a container: SIGTERM, then SIGKILL after `grace` seconds.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<(), CriError> {
        let request = StopContainerRequest { container_id: id.into(), timeout: grace };
        let limit = LONG + Duration::from_secs(grace.max(0) as u64);
        gone_is_fine(self.call::<_, ()>("/runtime.v1.RuntimeService/StopContainer", request, Some(limit)).await)
    }

    /// Removes a stopped container.
    pub async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let request = RemoveContainerRequest { container_id: id.into() };
        gone_is_fine(self.call::<_, ()>("/runtime.v1.RuntimeService/RemoveContainer", request, Some(LONG)).await)
    }

    /// Containers that match.
    pub async fn list_containers(&self, filter: Option<ContainerFilter>) -> Result<Vec<Container>, CriError> {
        let answer: ListContainersResponse = self
            .call("/runtime.v1.RuntimeService/ListContainers", ListContainersRequest { filter }, Some(SHORT))
            .await?;
        Ok(answer.containers)
    }

    /// All that is known of one container.
    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus, CriError> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer: ContainerStatusResponse =
            self.call("/runtime.v1.RuntimeService/ContainerStatus", request, Some(SHORT)).await?;
        answer.status.ok_or_else(|| CriError {
            code: tonic::Code::NotFound,
            message: format!("the runtime gave no status for container {id}"),
        })
    }

    /// Changes the resources of a running container.
    pub async fn update_resources(&self, id: &str, linux: LinuxContainerResources) -> Result<(), CriError> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(linux),
            annotations: Default::default(),
        };
        self.call("/runtime.v1.RuntimeService/UpdateContainerResources", request, Some(SHORT)).await
    }

    /// Tells the runtime that a log file was moved away.
    pub async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        let request = ReopenContainerLogRequest { container_id: id.into() };
        self.call("/runtime.v1.RuntimeService/ReopenContainerLog", request, Some(SHORT)).await
    }

    /// Runs a command in a container and waits; `limit` 0 means without end.
    pub async fn exec_sync(&self, id: &str, cmd: &[String], limit: Duration) -> Result<ExecSyncResponse, CriError> {
        let seconds = limit.as_secs() as i64;
        let request = ExecSyncRequest { container_id: id.into(), cmd: cmd.to_vec(), timeout: seconds };
        let wait = (!limit.is_zero()).then_some(limit + Duration::from_secs(2));
        self.call("/runtime.v1.RuntimeService/ExecSync", request, wait).await
    }

    /// Where to connect for an interactive command.
    pub async fn exec(&self, request: ExecRequest) -> Result<String, CriError> {
        let answer: ExecResponse = self.call("/runtime.v1.RuntimeService/Exec", request, Some(SHORT)).await?;
        Ok(answer.url)
    }

    /// Where to connect for a container's own streams.
    pub async fn attach(&self, request: AttachRequest) -> Result<String, CriError> {
        let answer: AttachResponse = self.call("/runtime.v1.RuntimeService/Attach", request, Some(SHORT)).await?;
        Ok(answer.url)
    }

    /// The runtime's event stream.
    pub async fn events(&self) -> Result<tonic::Streaming<ContainerEventResponse>, CriError> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        grpc.ready().await.map_err(|e| CriError { code: tonic::Code::Unavailable, message: crate::chain(&e) })?;
        let codec: ProstCodec<GetEventsRequest, ContainerEventResponse> = ProstCodec::default();
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/GetContainerEvents");
        Ok(grpc.server_streaming(tonic::Request::new(GetEventsRequest {}), path, codec).await?.into_inner())
    }

    /// Writable-layer and resource figures of all containers.
    pub async fn container_stats(&self) -> Result<Vec<ContainerStats>, CriError> {
        let answer: ListContainerStatsResponse = self
            .call(
                "/runtime.v1.RuntimeService/ListContainerStats",
                ListContainerStatsRequest { filter: None },
                Some(SHORT),
            )
            .await?;
        Ok(answer.stats)
    }

    /// All images.
    pub async fn list_images(&self) -> Result<Vec<Image>, CriError> {
        let answer: ListImagesResponse =
            self.call("/runtime.v1.ImageService/ListImages", ListImagesRequest { filter: None }, Some(SHORT)).await?;
        Ok(answer.images)
    }

    /// The image that `name` stands for, if the node has it.
    pub async fn image_status(&self, name: &str) -> Result<Option<Image>, CriError> {
        let request =
            ImageStatusRequest { image: Some(ImageSpec { image: name.into(), ..Default::default() }), verbose: false };
        let answer: ImageStatusResponse =
            self.call("/runtime.v1.ImageService/ImageStatus", request, Some(SHORT)).await?;
        Ok(answer.image)
    }

    /// Pulls an image; its reference.
    pub async fn pull_image(
        &self,
        name: &str,
        auth: Option<AuthConfig>,
        sandbox_config: Option<PodSandboxConfig>,
    ) -> Result<String, CriError> {
        let request = PullImageRequest {
            image: Some(ImageSpec { image: name.into(), ..Default::default() }),
            auth,
            sandbox_config,
        };
        let answer: PullImageResponse = self.call("/runtime.v1.ImageService/PullImage", request, None).await?;
        Ok(answer.image_ref)
    }

    /// Removes an image.
    pub async fn remove_image(&self, name: &str) -> Result<(), CriError> {
        let request = RemoveImageRequest { image: Some(ImageSpec { image: name.into(), ..Default::default() }) };
        gone_is_fine(self.call::<_, ()>("/runtime.v1.ImageService/RemoveImage", request, Some(LONG)).await)
    }

    /// Where images lie and what they take.
    pub async fn image_fs_info(&self) -> Result<ImageFsInfoResponse, CriError> {
        self.call("/runtime.v1.ImageService/ImageFsInfo", ImageFsInfoRequest {}, Some(SHORT)).await
    }
}

fn gone_is_fine(result: Result<(), CriError>) -> Result<(), CriError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

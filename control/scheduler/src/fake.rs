//! Objects for the tests of this crate.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, NodeStatus, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

fn quantity(text: &str) -> Quantity {
    Quantity(text.to_owned())
}

pub fn node(name: &str, cpu: &str, memory: &str) -> Arc<Node> {
    Arc::new(Node {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some([("kubernetes.io/hostname".to_owned(), name.to_owned())].into()),
            ..ObjectMeta::default()
        },
        status: Some(NodeStatus {
            allocatable: Some(
                [
                    ("cpu".to_owned(), quantity(cpu)),
                    ("memory".to_owned(), quantity(memory)),
                    ("pods".to_owned(), quantity("110")),
                ]
                .into(),
            ),
            ..NodeStatus::default()
        }),
        ..Node::default()
    })
}

pub fn pod(name: &str, cpu: &str) -> Arc<Pod> {
    Arc::new(Pod {
        metadata: ObjectMeta {
            name: Some(name.into()),
            uid: Some(name.into()),
            namespace: Some("default".into()),
            labels: Some([("app".to_owned(), "web".to_owned())].into()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: vec![Container {
                resources: Some(ResourceRequirements {
                    requests: Some([("cpu".to_owned(), quantity(cpu))].into()),
                    ..ResourceRequirements::default()
                }),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        ..Pod::default()
    })
}

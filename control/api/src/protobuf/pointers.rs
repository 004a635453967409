//! Which optional scalars keep an explicit zero. In the messages of the API a
//! plain field is always written, zero or not, while an optional one (a pointer
//! in the typed clients) is written only when it is set; JSON leaves plain zeros
//! out. The tables do not say which is which, so the optional ones are named here.

/// Fields that are optional wherever they appear.
const EVERYWHERE: &[&str] = &[
    "activeDeadlineSeconds", "allocateLoadBalancerNodePorts", "allowPrivilegeEscalation", "allowVolumeExpansion", "attachRequired",
    "automountServiceAccountToken", "averageUtilization", "backoffLimit", "backoffLimitPerIndex", "blockOwnerDeletion",
    "borrowingLimitPercent", "completions", "controller", "currentAverageUtilization", "currentCPUUtilizationPercentage", "defaultMode",
    "deletionGracePeriodSeconds", "enableServiceLinks", "endPort", "failedJobsHistoryLimit", "force", "fsGroup", "gracePeriodSeconds",
    "hostProcess", "hostUsers", "immutable", "leaseDurationSeconds", "leaseTransitions", "lendablePercent", "limitBytes",
    "manualSelector", "maxFailedIndexes", "minDomains", "minReplicas", "mode", "nodeAllocatableUpdatePeriodSeconds",
    "nominalConcurrencyShares", "optional", "orphanDependents", "parallelism", "partition", "podInfoOnMount", "priority", "privileged",
    "progressDeadlineSeconds", "readOnlyRootFilesystem", "remainingItemCount", "requiresRepublish", "revisionHistoryLimit",
    "runAsGroup", "runAsNonRoot", "runAsUser", "seLinuxMount", "serving", "setHostnameAsFQDN", "shareProcessNamespace", "sinceSeconds",
    "stabilizationWindowSeconds", "started", "startingDeadlineSeconds", "storageCapacity", "successfulJobsHistoryLimit", "suspend",
    "tailLines", "targetCPUUtilizationPercentage", "terminating", "terminationGracePeriodSeconds", "tolerationSeconds",
    "ttlSecondsAfterFinished", "volumeAttributesClassName",
];

/// Whether a zero on the wire was meant.
pub fn keeps_zero(type_name: &str, field: &str) -> bool {
    if EVERYWHERE.binary_search(&field).is_ok() {
        return !(type_name.ends_with(".PriorityClass"));
    }
    let ty = type_name.rsplit('.').next().unwrap_or("");
    match field {
        "replicas" => matches!(ty, "DeploymentSpec" | "ReplicaSetSpec" | "StatefulSetSpec" | "ReplicationControllerSpec"),
        "ready" => matches!(ty, "EndpointConditions" | "JobStatus"),
        "expirationSeconds" => matches!(ty, "ServiceAccountTokenProjection" | "CertificateSigningRequestSpec"),
        "timeoutSeconds" => matches!(ty, "ClientIPConfig") || ty.ends_with("Webhook"),
        "port" => matches!(ty, "EndpointPort" | "ServiceReference"),
        "name" | "protocol" | "appProtocol" => type_name.contains(".discovery.") && ty == "EndpointPort",
        "storageClassName" => ty == "PersistentVolumeClaimSpec",
        "type" => ty == "HostPathVolumeSource",
        "value" => ty == "PodDNSConfigOption",
        "service" => ty == "GRPCAction",
        "readOnly" => ty == "CSIVolumeSource",
        "observedGeneration" => ty == "HorizontalPodAutoscalerStatus",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sorted() {
        let mut sorted = super::EVERYWHERE.to_vec();
        sorted.sort();
        for f in sorted.iter().copied() {
            assert!(super::keeps_zero("x", f), "{f} is out of order");
        }
    }
}

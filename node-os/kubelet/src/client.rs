//! What is said of API calls, and how long they are waited for.

use std::future::Future;
use std::time::Duration;

/// A sentence about a failed API call, without the noise around it.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => crate::chain(other),
    }
}

/// A call that is given up after a while: a sign of life that hangs on a dead connection is none.
pub async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|late| Err(kube::Error::Service(late.into())))
}

/// The HTTP code of a refused call.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_that_hangs_is_given_up() {
        let late = within(Duration::from_millis(1), std::future::pending::<Result<(), _>>()).await;
        assert!(explain(&late.expect_err("late")).contains("elapsed"));
        within(Duration::from_secs(60), std::future::ready(Ok(()))).await.expect("in time");
    }
}

//! The API server alone, for trying it on a development machine.

fn main() -> std::process::ExitCode {
    kube_apiserver::main(std::env::args_os().collect())
}

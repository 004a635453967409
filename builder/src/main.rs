//! The `kimg` program: everything is in the library's `cli`.

fn main() -> std::process::ExitCode {
    kimg::cli::run(std::env::args_os())
}

//! `/init` of the initramfs.

fn main() -> std::process::ExitCode {
    node_init::stage1::main()
}

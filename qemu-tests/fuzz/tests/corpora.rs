//! Every input that was ever kept, through its target.

use std::path::Path;

#[test]
fn kept_inputs_do_no_harm() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in fuzz::targets() {
        let dir = corpus.join(name);
        let inputs: Vec<_> = std::fs::read_dir(&dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(!inputs.is_empty(), "{} holds no input", dir.display());
        for input in inputs {
            // Printed by the test harness if the target panics.
            println!("{}", input.display());
            target(&std::fs::read(&input).unwrap());
        }
    }
}

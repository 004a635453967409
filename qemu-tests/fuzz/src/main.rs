//! The coverage-guided run of one target, named by `FUZZ_TARGET`; arguments are libFuzzer's.
//! `make test-long PART=fuzz` builds it with the compiler's coverage hooks and runs every target.
#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some((_, run)) = fuzz::targets().find(|(name, _)| *name == wanted) else {
        let names: Vec<&str> = fuzz::targets().map(|(name, _)| name).collect();
        eprintln!("FUZZ_TARGET '{wanted}' is no target; there are: {}", names.join(", "));
        std::process::exit(2);
    };
    run
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));

//! What stage 1 tells PID 1, in `/run/kimg/stage1`: one `key value` a line.

use anyhow::{Context, Result};
use std::path::Path;
use std::time::Duration;

const FILE: &str = "/run/kimg/stage1";

/// The disk of the root, and when things happened since power-on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Handover {
    /// Kernel name of the disk that carries the verified root; CONFIG and STATE are taken from it alone.
    pub disk: String,
    /// Stage 1 began.
    pub stage1_start: Duration,
    /// The root's disk was there.
    pub root_found: Duration,
    /// The root was mounted.
    pub root_ready: Duration,
}

/// Written by stage 1.
pub fn write(handover: &Handover) -> Result<()> {
    let path = Path::new(FILE);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::write(path, render(handover)).with_context(|| format!("cannot write {FILE}"))
}

/// Read by PID 1.
pub fn read() -> Result<Handover> {
    let text = std::fs::read_to_string(FILE).with_context(|| {
        format!("cannot read {FILE}; this program is PID 1 of a kimg image and started by its initramfs")
    })?;
    parse(&text)
}

fn render(handover: &Handover) -> String {
    format!(
        "disk {}\nstart {}\nfound {}\nready {}\n",
        handover.disk,
        handover.stage1_start.as_millis(),
        handover.root_found.as_millis(),
        handover.root_ready.as_millis()
    )
}

fn parse(text: &str) -> Result<Handover> {
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
            .with_context(|| format!("{FILE} has no line '{key}'"))
    };
    let time = |key: &str| -> Result<Duration> { Ok(Duration::from_millis(value(key)?.parse()?)) };
    Ok(Handover {
        disk: value("disk")?.to_owned(),
        stage1_start: time("start")?,
        root_found: time("found")?,
        root_ready: time("ready")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let handover = Handover { disk: "vda".into(), stage1_start: Duration::from_millis(5), ..Handover::default() };
        assert_eq!(parse(&render(&handover)).unwrap(), handover);
        assert!(parse("disk vda\n").is_err());
    }
}

//! The console: it always ends in one screen that says who this node is, what it waits for, why, and what to do.

use crate::machine::Shared;
use node_api::{NodeStatus, Service, ServiceState};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// Changes that come together are shown together.
const GATHER: Duration = Duration::from_millis(1500);
const RULE: &str = "------------------------------------------------------------------------";

/// Shows the screen after each change, for ever.
pub async fn run(machine: Shared) {
    let mut shown = String::new();
    loop {
        machine.changed.notified().await;
        tokio::time::sleep(GATHER).await;
        let screen = screen(&machine.status(), &machine.services());
        if screen != shown {
            print(&screen);
            shown = screen;
        }
    }
}

/// Writes to every console of the kernel. One that does not take it is passed over: there is nowhere to say so.
pub fn print(text: &str) {
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_else(|_| "console".to_owned());
    for name in active.split_ascii_whitespace() {
        // A serial line that nobody reads must not stop PID 1.
        let options = libc::O_NONBLOCK | libc::O_NOCTTY;
        if let Ok(mut console) = OpenOptions::new().write(true).custom_flags(options).open(format!("/dev/{name}")) {
            let _ = console.write_all(text.as_bytes());
        }
    }
}

fn screen(status: &NodeStatus, services: &[Service]) -> String {
    let mut text = format!("\n{RULE}\n");
    let name = if status.name.is_empty() { "(no name yet)" } else { &status.name };
    let mut line = |label: &str, value: &str| {
        if !value.is_empty() {
            let value: String = printable(value).collect();
            // Writing to a String does not fail.
            let _ = writeln!(text, "{label:<8} {value}");
        }
    };
    line("kimg", &format!("{name}, {} of cluster {}", status.role, status.cluster));
    line("image", &status.image);
    line("address", &status.addresses.join(", "));
    if status.running {
        line("state", "running, all services are ready");
    } else {
        line("stage", &status.stage);
        line("waits", &status.waits_for);
        line("why", &status.why);
        line("do", &status.hint);
    }
    for service in services.iter().filter(|service| !is_fine(service.state)) {
        line("service", &describe(service));
    }
    for warning in &status.warnings {
        line("warning", warning);
    }
    if let (Some(address), false) = (status.addresses.first(), status.fingerprint.is_empty()) {
        line("api", &format!("node API https://{address}:{}", node_api::PORT));
        line("", &format!("SHA256:{}", status.fingerprint));
    }
    let _ = writeln!(text, "{RULE}");
    text
}

/// One line without what a terminal takes as an order: strangers' words are in what is shown.
pub(crate) fn printable(text: &str) -> impl Iterator<Item = char> {
    let letters = text.chars().map(|letter| if matches!(letter, '\n' | '\t') { ' ' } else { letter });
    letters.filter(|letter| !letter.is_control())
}

fn is_fine(state: ServiceState) -> bool {
    matches!(state, ServiceState::Ready | ServiceState::Done)
}

fn describe(service: &Service) -> String {
    let state = match service.state {
        ServiceState::Waiting => format!("waits for {}", service.needs.join(", ")),
        ServiceState::Starting => "starts".to_owned(),
        ServiceState::BackOff => format!("ended ({}), starts again soon", service.last_exit),
        ServiceState::Stopping => "is ending".to_owned(),
        ServiceState::Stopped => "has ended".to_owned(),
        ServiceState::Ready | ServiceState::Done => "is ready".to_owned(),
    };
    let said = if service.status.is_empty() { String::new() } else { format!(": {}", service.status) };
    format!("{} {state}{said}", service.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_says_who_what_and_why() {
        let status = NodeStatus {
            role: "worker".into(),
            cluster: "demo".into(),
            stage: "metadata".into(),
            why: "this machine has no name".into(),
            hint: "set hostname".into(),
            addresses: vec!["10.0.0.1".into()],
            fingerprint: "ab".into(),
            ..NodeStatus::default()
        };
        let text = screen(&status, &[]);
        for wanted in [
            "(no name yet), worker of cluster demo",
            "this machine has no name",
            "set hostname",
            "https://10.0.0.1:10270",
            "SHA256:ab",
        ] {
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn nobody_s_words_draw_a_screen_of_their_own() {
        let hostile = || "a\r\n\x1b[2J\u{9b}2Jb".to_owned();
        let status = NodeStatus {
            name: hostile(),
            why: hostile(),
            warnings: vec![hostile()],
            addresses: vec![hostile()],
            ..NodeStatus::default()
        };
        let service = Service {
            name: "page".into(),
            state: ServiceState::Starting,
            pid: None,
            since_ms: 0,
            restarts: 0,
            status: hostile(),
            last_exit: String::new(),
            needs: Vec::new(),
            memory: 0,
        };
        let text = screen(&status, &[service]);
        assert_eq!(text.matches("a [2J2Jb").count(), 5, "{text}");
        assert!(text.chars().all(|letter| letter == '\n' || !letter.is_control()), "{text:?}");
    }
}

//! The picture as one page of HTML without a script, which looks again by itself.

use crate::collect::{Certificate, Event, Node, Picture, Pod, Roll, RollNode};
use crate::html::Html;
use jiff::Timestamp;

/// Days before its end at which a certificate is told apart; nodes renew theirs long before.
const SOON_DAYS: i64 = 7;

/// How a value is meant.
#[derive(Clone, Copy)]
enum Mark {
    Plain,
    Good,
    Warn,
    Bad,
}

/// A value in a table.
struct Cell(String, Mark);

fn plain(text: impl ToString) -> Cell {
    Cell(text.to_string(), Mark::Plain)
}

fn head(html: &mut Html, title: &str, extra: &'static str) {
    html.raw("<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width, initial-scale=1\">")
        .raw("<meta name=robots content=noindex><link rel=stylesheet href=\"/style.css\">")
        .raw(extra)
        .raw("<title>")
        .text(title)
        .raw("</title></head><body>");
}

/// The page of who has not logged in, and why not.
pub fn login(said: &str) -> String {
    let mut html = Html::default();
    head(&mut html, "kimg status", "<script src=\"/login.js\" defer></script>");
    html.raw("<header><h1>kimg status</h1></header>");
    if !said.is_empty() {
        html.raw("<p class=bad role=alert>").text(said).raw("</p>");
    }
    html.raw("<p>Open the link that <code>kimg status --link</code> prints. It is good for ten minutes, and once.</p>")
        .raw("<form id=login method=post action=\"/login\"><p><label>What stands behind its #: ")
        .raw("<input name=token type=password autocomplete=off required></label> <button>Look</button></p></form>")
        .raw("</body></html>");
    html.done()
}

/// The page.
pub fn status(cluster: &str, picture: &Picture) -> String {
    let mut html = Html::default();
    head(&mut html, cluster, "<meta http-equiv=refresh content=10>");
    html.raw("<header><h1>").text(cluster).raw("</h1><span class=soft>").text(&picture.version).raw(", at ");
    html.text(clock(picture.at)).raw("</span>");
    html.raw("<form class=end method=post action=\"/logout\"><button>Log out</button></form></header><main>");
    for fault in &picture.faults {
        html.raw("<p class=bad role=alert>").text(fault).raw("</p>");
    }
    nodes(&mut html, picture);
    if let Some(roll) = &picture.roll {
        the_roll(&mut html, roll, picture.at);
    }
    pods(&mut html, picture);
    certificates(&mut html, &picture.certificates, picture.at);
    events(&mut html, &picture.events, picture.at);
    html.raw("</main></body></html>");
    html.done()
}

fn nodes(html: &mut Html, picture: &Picture) {
    let ready = picture.nodes.iter().filter(|node| node.ready).count();
    html.raw("<h2>Nodes</h2><p>").text(ready).raw(" of ").text(picture.nodes.len()).raw(" Ready</p>");
    let row = |node: &Node| {
        let state = match (node.ready, node.cordoned) {
            (false, _) => Cell("NotReady".into(), Mark::Bad),
            (true, true) => Cell("Ready, takes no new pods".into(), Mark::Warn),
            (true, false) => Cell("Ready".into(), Mark::Good),
        };
        vec![
            plain(&node.name),
            plain(if node.master { "master" } else { "worker" }),
            state,
            plain(&node.image),
            plain(&node.versions),
            plain(&node.address),
            // The beginning is enough to see that it has changed.
            plain(node.boot.chars().take(8).collect::<String>()),
            plain(age(node.since, picture.at)),
            Cell(node.why.clone(), Mark::Warn),
        ]
    };
    let heads = ["Node", "Role", "State", "Image", "Versions", "Address", "Boot", "Age", "Fault"];
    table(html, &heads, picture.nodes.iter().map(row));
}

fn the_roll(html: &mut Html, roll: &Roll, now: Timestamp) {
    let title = if roll.outcome == "running" { "Roll under way" } else { "Last roll" };
    html.raw("<h2>").text(title).raw("</h2><p>").text(&roll.outcome);
    if roll.back {
        html.raw(", back to the images of before");
    }
    html.raw(", begun ").text(age(roll.started, now)).raw(" ago</p>");
    let row = |node: &RollNode| {
        let mark = match node.step.as_str() {
            "done" => Mark::Good,
            "failed" => Mark::Bad,
            "skipped" => Mark::Warn,
            _ => Mark::Plain,
        };
        let to = if node.to.is_empty() { "leaves the cluster".to_owned() } else { short(&node.to) };
        vec![
            plain(&node.node),
            Cell(node.step.clone(), mark),
            plain(age(node.since, now)),
            plain(short(&node.from)),
            plain(to),
            plain(node.why.as_deref().unwrap_or_default()),
        ]
    };
    table(html, &["Node", "Step", "For", "Image before", "Image after", "Why"], roll.nodes.iter().map(row));
}

fn pods(html: &mut Html, picture: &Picture) {
    html.raw("<h2>Pods</h2><p>")
        .text(picture.pods_well)
        .raw(" of ")
        .text(picture.pods_in_all)
        .raw(" as they should be");
    let more = picture.pods_in_all.saturating_sub(picture.pods.len());
    if more > 0 {
        html.raw("; ").text(more).raw(" are not shown");
    }
    html.raw("</p>");
    let row = |pod: &Pod| {
        vec![
            plain(&pod.name),
            Cell(pod.state.clone(), if pod.well { Mark::Good } else { Mark::Bad }),
            plain(format!("{}/{}", pod.ready.0, pod.ready.1)),
            plain(pod.restarts),
            plain(&pod.node),
            plain(age(pod.since, picture.at)),
        ]
    };
    table(html, &["Pod", "State", "Ready", "Restarts", "Node", "Age"], picture.pods.iter().map(row));
}

fn certificates(html: &mut Html, certificates: &[Certificate], now: Timestamp) {
    html.raw("<h2>Certificates</h2>");
    let row = |certificate: &Certificate| {
        let days = (certificate.until.as_second() - now.as_second()).div_euclid(86_400);
        let left = match days {
            ..0 => Cell("ended".into(), Mark::Bad),
            0..SOON_DAYS => Cell(format!("{days} d"), Mark::Warn),
            _ => Cell(format!("{days} d"), Mark::Good),
        };
        vec![plain(&certificate.node), plain(&certificate.name), left, plain(clock(certificate.until))]
    };
    table(html, &["Node", "Certificate", "Left", "Until"], certificates.iter().map(row));
}

fn events(html: &mut Html, events: &[Event], now: Timestamp) {
    html.raw("<h2>Events</h2>");
    let row = |event: &Event| {
        let mark = if event.warning { Mark::Warn } else { Mark::Plain };
        vec![
            plain(age(event.at, now)),
            Cell(event.reason.clone(), mark),
            plain(&event.object),
            plain(&event.message),
            plain(event.count),
        ]
    };
    table(html, &["Ago", "Reason", "Object", "Message", "Times"], events.iter().map(row));
}

/// A table, of which each row is a card of its own where there is little room.
fn table(html: &mut Html, heads: &[&'static str], rows: impl Iterator<Item = Vec<Cell>>) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        html.raw("<p class=soft>none</p>");
        return;
    }
    html.raw("<table><thead><tr>");
    for &head in heads {
        html.raw("<th scope=col>").raw(head).raw("</th>");
    }
    html.raw("</tr></thead><tbody>");
    for row in rows {
        html.raw("<tr>");
        for (&head, Cell(text, mark)) in heads.iter().zip(row) {
            let class = match mark {
                Mark::Plain => "",
                Mark::Good => " class=good",
                Mark::Warn => " class=warn",
                Mark::Bad => " class=bad",
            };
            html.raw("<td data-label=\"").raw(head).raw("\"><span").raw(class).raw(">");
            html.text(if text.is_empty() { "–" } else { &text }).raw("</span></td>");
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table>");
}

/// The beginning of an image's sum is enough.
fn short(image: &str) -> String {
    image.chars().take(12).collect()
}

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "?".to_owned() };
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each text of a picture in which everybody is hostile.
    fn hostile() -> Picture {
        let evil = || "<img src=x onerror=alert(1)>\"'&".to_owned();
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        Picture {
            at,
            version: evil(),
            nodes: vec![Node {
                name: evil(),
                why: evil(),
                address: evil(),
                image: evil(),
                versions: evil(),
                boot: evil(),
                ..Node::default()
            }],
            roll: Some(Roll {
                started: Some(at),
                back: true,
                outcome: evil(),
                nodes: vec![RollNode {
                    node: evil(),
                    from: evil(),
                    to: evil(),
                    step: evil(),
                    since: None,
                    why: Some(evil()),
                }],
            }),
            pods_in_all: 1,
            pods_well: 0,
            pods: vec![Pod { name: evil(), node: evil(), state: evil(), ..Pod::default() }],
            certificates: vec![Certificate { node: evil(), name: evil(), until: at }],
            events: vec![Event { reason: evil(), object: evil(), message: evil(), warning: true, ..Event::default() }],
            faults: vec![evil()],
        }
    }

    #[test]
    fn nothing_in_the_picture_becomes_markup() {
        let page = status("<img src=x>", &hostile());
        assert!(!page.contains("<img") && page.matches("&lt;img").count() > 15, "{page}");
        // As strict as the policy that it is sent with.
        for word in ["<script", "<style", " style=", "javascript:", "http://", "https://"] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(!login("<img src=x>").contains("<img"));
    }

    #[test]
    fn ages_and_ends_are_told() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |ago: i64| Timestamp::from_second(1_800_000_000 - ago).ok();
        let told: Vec<String> = [0, 119, 120, 7_200, 172_800, -5].map(|ago| age(at(ago), now)).into();
        assert_eq!(told, ["0 s", "119 s", "2 min", "2 h", "2 d", "0 s"]);
        assert_eq!(age(None, now), "?");
        let one = |ago: i64| Certificate { node: "n".into(), name: "c".into(), until: at(ago).unwrap() };
        let mut html = Html::default();
        certificates(&mut html, &[one(1), one(-86_400), one(-8 * 86_400)], now);
        let page = html.done();
        assert!(
            page.contains("class=bad>ended<") && page.contains("class=warn>1 d<") && page.contains("class=good>8 d<")
        );
    }
}

//! NoCloud by a line: `ds=nocloud;k=v;…` in the SMBIOS serial number or on the kernel's command line.
//! `h` is the host name, `i` the instance id, `s` a URL below which the documents lie.
//! <https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>

use super::{Found, Platform, Source, parse_meta_data};

/// The source.
pub(super) struct KernelLine;

#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    hostname: Option<String>,
    instance_id: Option<String>,
    seed_from: Option<String>,
}

impl Source for KernelLine {
    fn name(&self) -> &'static str {
        "nocloud-line"
    }

    fn needs_network(&self, platform: &dyn Platform) -> bool {
        find(platform).is_some_and(|line| line.seed_from.is_some())
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, String> {
        let Some(line) = find(platform) else { return Ok(None) };
        let mut found = Found { source: self.name().to_owned(), ..Found::default() };
        if let Some(base) = &line.seed_from {
            if !base.starts_with("http://") {
                return Err(format!("the metadata URL {base:?} in ds=nocloud does not begin with http://"));
            }
            let page = |name: &str| {
                platform.get(&format!("{base}{name}"), &[]).map_err(|error| format!("{base}{name}: {error}"))
            };
            let meta = page("meta-data")?.unwrap_or_default();
            (found.instance_id, found.hostname) = parse_meta_data(&meta)?;
            found.user_data = page("user-data")?;
            found.network_config = page("network-config")?.map(|body| String::from_utf8_lossy(&body).into_owned());
        }
        // The line stands above what it points to.
        found.hostname = line.hostname.or(found.hostname);
        found.instance_id = line.instance_id.or(found.instance_id);
        // A line without a URL only gives a name to what a drive says.
        Ok(found.user_data.is_some().then_some(found))
    }
}

/// Host name and instance id of a line, for the drive to use.
pub(super) fn overrides(platform: &dyn Platform) -> (Option<String>, Option<String>) {
    find(platform).map(|line| (line.hostname, line.instance_id)).unwrap_or_default()
}

fn find(platform: &dyn Platform) -> Option<Line> {
    let serial = platform.dmi("product_serial").unwrap_or_default();
    let kernel = platform.kernel_line();
    let words = kernel.split_ascii_whitespace().map(str::to_owned);
    let line = words.chain([serial]).find_map(|word| parse(&word));
    line.map(|line| with_dmi(line, platform))
}

fn parse(word: &str) -> Option<Line> {
    let rest = word.trim().strip_prefix("ds=nocloud").or_else(|| word.trim().strip_prefix("\"ds=nocloud"))?;
    let rest = rest.strip_prefix("-net").unwrap_or(rest).trim_end_matches('"');
    let mut line = Line::default();
    for pair in rest.split(';') {
        let Some((key, value)) = pair.split_once('=') else { continue };
        let value = Some(value.to_owned()).filter(|value| !value.is_empty());
        match key {
            "s" | "seedfrom" => line.seed_from = value,
            "h" | "local-hostname" => line.hostname = value,
            "i" | "instance-id" => line.instance_id = value,
            _ => {}
        }
    }
    Some(line)
}

/// Replaces `__dmi.NAME__` in the URL.
fn with_dmi(mut line: Line, platform: &dyn Platform) -> Line {
    if let Some(url) = &mut line.seed_from {
        // Few variables fit in a URL; the bound keeps values that hold variables from going round in circles.
        for _ in 0..8 {
            let Some((before, rest)) = url.split_once("__dmi.") else { break };
            let Some((name, after)) = rest.split_once("__") else { break };
            let name = name.replace('-', "_");
            *url = format!("{before}{}{after}", platform.dmi(&name).unwrap_or_default());
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakePlatform;
    use super::*;

    #[test]
    fn a_line_with_a_url_fetches_the_documents() {
        let mut platform = FakePlatform {
            line: "quiet ds=nocloud;h=w1;s=http://10.0.2.2/__dmi.product-uuid__/",
            ..FakePlatform::default()
        };
        platform.dmi.insert("product_uuid", "u1");
        platform.pages.insert("http://10.0.2.2/u1/user-data", "#cloud-config");
        platform.pages.insert("http://10.0.2.2/u1/meta-data", "instance-id: 5\nlocal-hostname: other");
        assert!(KernelLine.needs_network(&platform));
        let found = KernelLine.read(&platform).unwrap().unwrap();
        assert_eq!(found.hostname.as_deref(), Some("w1"));
        assert_eq!(found.instance_id.as_deref(), Some("5"));
        assert_eq!(found.user_data.as_deref(), Some(&b"#cloud-config"[..]));
    }

    #[test]
    fn the_serial_number_counts_too_and_other_words_do_not() {
        let mut platform = FakePlatform::default();
        assert_eq!(KernelLine.read(&platform).unwrap(), None);
        platform.dmi.insert("product_serial", "ds=nocloud-net;s=ftp://x/");
        assert!(KernelLine.read(&platform).unwrap_err().contains("http://"));
        platform.dmi.insert("product_serial", "ds=nocloud;i=9");
        assert_eq!(overrides(&platform).1.as_deref(), Some("9"));
        assert_eq!(KernelLine.read(&platform).unwrap(), None);
    }
}

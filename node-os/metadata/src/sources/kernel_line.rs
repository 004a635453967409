//! NoCloud by a line: `ds=nocloud;k=v;…` in the SMBIOS serial number or on the kernel's command line.
//! `h` is the host name, `i` the instance id, `s` a URL below which the documents lie.
//! <https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>

use super::http::Service;
use super::nocloud::Documents;
use super::{Found, Platform, Reach, Source, SourceError, UserDataLimit};

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

    /// A line without a URL only gives a name to what a drive says.
    fn detect(&self, platform: &dyn Platform) -> bool {
        find(platform).is_some_and(|line| line.seed_from.is_some())
    }

    fn reach(&self, _platform: &dyn Platform) -> &'static [Reach] {
        &[Reach::Dhcp]
    }

    fn read(&self, platform: &dyn Platform) -> Result<Option<Found>, SourceError> {
        let Some(line) = find(platform) else { return Ok(None) };
        let Some(base) = line.seed_from else { return Ok(None) };
        if !base.starts_with("http://") {
            let why = format!("the metadata URL {base:?} in ds=nocloud does not begin with http://");
            return Err(SourceError::Unusable(why));
        }
        // The name of a document follows the URL as it is: with a slash at its end, or with `?file=`.
        let service = Service::new(platform, &base);
        let documents = Documents {
            meta_data: service.get("meta-data")?,
            user_data: service.get("user-data")?,
            network_config: service.get("network-config")?,
        };
        if documents.meta_data.is_none() && documents.user_data.is_none() {
            return Err(SourceError::Absent(format!("{base} in ds=nocloud has neither meta-data nor user-data")));
        }
        let mut found = documents.into_found(self.name())?;
        // The line stands above what it points to.
        found.hostname = line.hostname.or(found.hostname);
        found.instance_id = line.instance_id.or(found.instance_id);
        Ok(Some(found))
    }

    fn user_data_limit(&self) -> Option<UserDataLimit> {
        None
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

//! Checks of single values, and the fault that they tell.

use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// What is wrong, and where in the text.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) span: Option<Range<usize>>,
    pub(super) field: String,
    pub(super) message: String,
}

pub(super) fn fault<T>(at: &Spanned<T>, field: &str, message: impl Into<String>) -> Fault {
    Fault { span: Some(at.span()), field: field.to_string(), message: message.into() }
}

pub(super) fn optional_fault<T>(at: &Option<Spanned<T>>, field: &str, message: &str) -> Fault {
    Fault { span: at.as_ref().map(Spanned::span), field: field.to_string(), message: message.to_string() }
}

pub(super) fn choice<T: Copy>(
    written: &Option<Spanned<String>>,
    field: &str,
    known: &[(&str, T)],
    default: T,
) -> Result<T, Fault> {
    let Some(written) = written else {
        return Ok(default);
    };
    let value = written.get_ref();
    known.iter().find(|(name, _)| name == value).map(|(_, v)| *v).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let list = names.join("\" or \"");
        fault(written, field, format!("`{value}` is not known; write \"{list}\""))
    })
}

pub(crate) fn is_dns_label(text: &str) -> bool {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 63 && text.starts_with(ok) && text.ends_with(ok) && text.chars().all(|c| ok(c) || c == '-')
}

pub(super) fn dns_label(text: &Spanned<String>, field: &str) -> Result<(), Fault> {
    if is_dns_label(text.get_ref()) {
        return Ok(());
    }
    let message = format!(
        "`{}` is no name: use lower-case letters, digits and `-`, at most 63, beginning and ending with a letter or digit",
        text.get_ref()
    );
    Err(fault(text, field, message))
}

pub(super) fn is_dns_name(name: &str) -> bool {
    name.len() <= 253 && !name.is_empty() && name.split('.').all(is_dns_label)
}

pub(super) fn dns_name(text: &Spanned<String>, field: &str) -> Result<(), Fault> {
    let name = text.get_ref();
    if is_dns_name(name) {
        return Ok(());
    }
    let message = format!("`{name}` is no DNS name; write labels of lower-case letters and digits joined by dots");
    Err(fault(text, field, message))
}

pub(super) fn cidr(written: &Option<Spanned<String>>, field: &str, default: &str) -> Result<IpNet, Fault> {
    let text = written.as_ref().map_or(default, |w| w.get_ref());
    let net: IpNet = text.parse().map_err(|_| {
        optional_fault(
            written,
            field,
            &format!("`{text}` is no address range; write it as address/prefix, e.g. {default}"),
        )
    })?;
    if net.trunc() != net {
        let message = format!("`{text}` has bits set after the prefix; write {}", net.trunc());
        return Err(optional_fault(written, field, &message));
    }
    Ok(net)
}

pub(super) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

pub(super) fn address(text: &Spanned<String>, field: &str) -> Result<IpAddr, Fault> {
    let value = text.get_ref();
    value.parse().map_err(|_| {
        fault(text, field, format!("`{value}` is no IP address; write it without a prefix, e.g. 10.77.0.10"))
    })
}

pub(super) fn url(written: Option<Spanned<String>>, field: &str) -> Result<Option<String>, Fault> {
    let Some(written) = written else {
        return Ok(None);
    };
    let value = written.get_ref();
    // Not even in the message.
    if value.contains('@') {
        let message = "a URL here has no user and password in it: this file goes into every image's manifest, and on \
                       from there; leave out what stands before the @";
        return Err(fault(&written, field, message));
    }
    if value.starts_with("http://") || value.starts_with("https://") || value.starts_with("file://") {
        return Ok(Some(value.trim_end_matches('/').to_string()));
    }
    Err(fault(&written, field, format!("`{value}` is no URL; it begins with http://, https:// or file://")))
}

pub(super) fn moment(written: Option<Spanned<String>>, field: &str) -> Result<Option<jiff::Timestamp>, Fault> {
    let Some(written) = written else { return Ok(None) };
    let value = written.get_ref();
    value
        .parse()
        .map(Some)
        .map_err(|_| fault(&written, field, format!("`{value}` is no moment; write it as e.g. 2026-01-31T00:00:00Z")))
}

/// Regular files relative to the cluster's folder, and where `folders` is true also folders with an `image.toml`.
pub(super) fn files(dir: &Path, paths: &[Spanned<PathBuf>], field: &str, folders: bool) -> Result<Vec<PathBuf>, Fault> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for path in paths {
        let full = dir.join(path.get_ref());
        if !(full.is_file() || folders && full.join("image.toml").is_file()) {
            let more = if folders { " (nor a folder with an image.toml)" } else { "" };
            let message =
                format!("there is no file {}{more}; paths are relative to the cluster's folder", full.display());
            return Err(fault(path, field, message));
        }
        // In the image they lie beside each other.
        if full.is_file() && !names.insert(full.file_name().map(ToOwned::to_owned)) {
            let message = format!("two files are called {}; rename one of them", full.display());
            return Err(fault(path, field, message));
        }
        found.push(full);
    }
    Ok(found)
}

/// A number within a range.
pub(super) fn number(
    written: &Option<Spanned<i64>>,
    field: &str,
    range: Range<i64>,
    default: u32,
) -> Result<u32, Fault> {
    let Some(written) = written else { return Ok(default) };
    let value = *written.get_ref();
    match u32::try_from(value) {
        Ok(number) if range.contains(&value) => Ok(number),
        _ => {
            let message = format!("{value} is out of range; write {} to {}", range.start, range.end - 1);
            Err(fault(written, field, message))
        }
    }
}

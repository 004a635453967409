//! `kimg inspect --treemap`: what takes the space of an image, as one HTML page with an SVG drawing and no script.
//! Areas are bytes as they are stored, that is, compressed.

use super::cmd::mib;
use super::contents::Contents;
use super::inspect::{self, Report};
use super::reader::Disk;
use crate::disk::gpt;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 760.0;
/// Room for a group's name above its parts.
const TITLE: f64 = 16.0;
const STYLE: &str = "body{font:14px sans-serif;margin:1.5em;background:#fff;color:#222}svg{max-width:100%;height:auto}\
    rect{stroke:#fff}text{font:11px sans-serif;pointer-events:none}table{border-collapse:collapse}\
    td{padding:.1em 1em .1em 0}td:nth-child(2),td:nth-child(3){text-align:right}";

/// A group with the sizes of its parts.
type Groups = BTreeMap<String, BTreeMap<String, u64>>;

/// Draws an image.
///
/// # Errors
/// It cannot be read.
pub fn page(image: &Path) -> Result<String> {
    let report = inspect::inspect(image)?;
    let contents = Contents::of_image(image)?;
    let mut groups = Groups::new();
    for (path, item) in contents.files.iter().filter(|(_, item)| item.packed > 0) {
        *groups.entry(item.owner.clone()).or_default().entry(path.clone()).or_default() += item.packed;
    }
    let mut disk = Disk::open(image)?;
    let table = inspect::table_of(&mut disk)?;
    for (name, title) in [
        ("bios", "GRUB"),
        ("esp", "kernel, initramfs and loaders"),
        ("verity", "hash tree of the root"),
        ("config", "CONFIG"),
    ] {
        let used = used_bytes(&mut disk, inspect::partition(&table, name)?);
        let used = used.with_context(|| format!("reading {}", image.display()))?;
        groups.entry("boot and settings".into()).or_default().insert(title.into(), used);
    }
    Ok(html(&report, &groups))
}

/// Bytes of the blocks that are not all zeros.
fn used_bytes(disk: &mut Disk, partition: &gpt::Partition) -> Result<u64> {
    const BLOCK: u64 = 4096;
    let mut used = 0;
    let start = inspect::offset_of(partition)?;
    let end = start.saturating_add(partition.sectors.saturating_mul(gpt::SECTOR));
    let mut at = start;
    while at < end {
        let length = BLOCK.min(end - at);
        if disk.read_at(at, usize::try_from(length)?)?.iter().any(|byte| *byte != 0) {
            used += length;
        }
        at += length;
    }
    Ok(used)
}

fn html(report: &Report, groups: &Groups) -> String {
    let mut totals: Vec<(&str, u64)> =
        groups.iter().map(|(name, parts)| (name.as_str(), parts.values().sum())).collect();
    by_size(&mut totals);
    let all: u64 = totals.iter().map(|(_, size)| size).sum();
    let text = |key: &str| report.cluster[key].as_str().unwrap_or("?");
    let title = escape(&format!("{} image of cluster {}: {}", text("role"), text("name"), mib(all)));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n<p>Root hash {}. \
         Areas are bytes as stored; point at one for its name.</p>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\">\n",
        escape(&report.root_hash)
    );
    let whole = Area { x: 0.0, y: 0.0, width: WIDTH, height: HEIGHT };
    for (n, ((group, size), area)) in totals.iter().zip(squarify(&totals, whole)).enumerate() {
        // Neighbours in size differ in hue: the golden angle.
        let hue = (n * 137) % 360;
        rectangle(&mut out, area, &format!("hsl({hue},45%,55%)"), &format!("{group}: {}", mib(*size)), group);
        let inner = Area { y: area.y + TITLE, height: area.height - TITLE, ..area };
        if inner.height < 2.0 || inner.width < 2.0 {
            continue;
        }
        let mut parts: Vec<(&str, u64)> = groups[*group].iter().map(|(name, size)| (name.as_str(), *size)).collect();
        by_size(&mut parts);
        for ((name, size), area) in parts.iter().zip(squarify(&parts, inner)) {
            let label = name.rsplit('/').next().unwrap_or(name);
            rectangle(&mut out, area, &format!("hsl({hue},45%,75%)"), &format!("{name}: {}", mib(*size)), label);
        }
    }
    out.push_str("</svg>\n<table>\n");
    for (name, size) in &totals {
        let share = *size as f64 * 100.0 / all.max(1) as f64;
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td><td>{share:.1} %</td></tr>", escape(name), mib(*size));
    }
    out.push_str("</table></body></html>\n");
    out
}

fn by_size(list: &mut [(&str, u64)]) {
    list.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
}

fn rectangle(out: &mut String, area: Area, fill: &str, hint: &str, label: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"><title>{}</title></rect>",
        area.x,
        area.y,
        area.width,
        area.height,
        escape(hint)
    );
    let fits = (area.width / 6.5) as usize;
    if area.height >= TITLE - 2.0 && fits >= 4 {
        let label: String = label.chars().take(fits).collect();
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", area.x + 3.0, area.y + 12.0, escape(&label));
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// Divides `area` among sizes in descending order into rectangles as square as can be
/// (Bruls, Huizing, van Wijk: "Squarified Treemaps", 2000).
fn squarify(sizes: &[(&str, u64)], area: Area) -> Vec<Area> {
    let total: u64 = sizes.iter().map(|(_, size)| size).sum();
    let scale = area.width * area.height / (total.max(1) as f64);
    let mut left: Vec<f64> = sizes.iter().map(|(_, size)| *size as f64 * scale).collect();
    let mut out = Vec::with_capacity(sizes.len());
    let mut free = area;
    while !left.is_empty() {
        let side = free.width.min(free.height);
        let mut count = 1;
        while count < left.len() && worst(&left[..=count], side) <= worst(&left[..count], side) {
            count += 1;
        }
        let row: Vec<f64> = left.drain(..count).collect();
        free = lay_row(&row, free, &mut out);
    }
    out
}

/// The largest ratio of two sides in a row along `side`.
fn worst(row: &[f64], side: f64) -> f64 {
    let sum: f64 = row.iter().sum();
    let (least, most) = row.iter().fold((f64::MAX, 0.0f64), |(a, b), size| (a.min(*size), b.max(*size)));
    if sum <= 0.0 || least <= 0.0 || side <= 0.0 {
        return f64::MAX;
    }
    (side * side * most / (sum * sum)).max(sum * sum / (side * side * least))
}

/// Puts a row along the shorter side; what is left of the area.
fn lay_row(row: &[f64], free: Area, out: &mut Vec<Area>) -> Area {
    let sum: f64 = row.iter().sum();
    let upright = free.width >= free.height;
    let side = if upright { free.height } else { free.width };
    let depth = if side > 0.0 { sum / side } else { 0.0 };
    let mut at = 0.0;
    for size in row {
        let length = if depth > 0.0 { size / depth } else { 0.0 };
        out.push(if upright {
            Area { x: free.x, y: free.y + at, width: depth, height: length }
        } else {
            Area { x: free.x + at, y: free.y, width: length, height: depth }
        });
        at += length;
    }
    if upright {
        Area { x: free.x + depth, width: (free.width - depth).max(0.0), ..free }
    } else {
        Area { y: free.y + depth, height: (free.height - depth).max(0.0), ..free }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{Fixture, image};

    #[test]
    fn areas_are_sizes_and_do_not_overlap() {
        // The example of the paper: 6 × 4 divided into 6, 6, 4, 3, 2, 2, 1.
        let sizes = [("a", 6), ("b", 6), ("c", 4), ("d", 3), ("e", 2), ("f", 2), ("g", 1)];
        let areas = squarify(&sizes, Area { x: 0.0, y: 0.0, width: 6.0, height: 4.0 });
        for ((name, size), area) in sizes.iter().zip(&areas) {
            assert!((area.width * area.height - *size as f64).abs() < 1e-9, "{name}: {area:?}");
        }
        assert_eq!(areas[0], Area { x: 0.0, y: 0.0, width: 3.0, height: 2.0 });
        assert_eq!(areas[1], Area { x: 0.0, y: 2.0, width: 3.0, height: 2.0 });
        for (n, a) in areas.iter().enumerate() {
            for b in &areas[n + 1..] {
                let apart = a.x + a.width <= b.x + 1e-9
                    || b.x + b.width <= a.x + 1e-9
                    || a.y + a.height <= b.y + 1e-9
                    || b.y + b.height <= a.y + 1e-9;
                assert!(apart, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        let area = Area { x: 0.0, y: 0.0, width: 6.0, height: 4.0 };
        assert_eq!(squarify(&[], area), []);
        assert!(squarify(&[("a", 0), ("b", 0)], area).iter().all(|a| (a.width * a.height).is_finite()));
    }

    #[test]
    fn a_page_is_the_same_twice_and_needs_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        let mut fixture = Fixture::new(dir.path());
        // Enough that does not shrink to be seen beside the rest.
        let noise = (0..50_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        fixture.files.push(("/usr/lib/<odd>&\"name", "libc6", noise));
        image(&fixture, &path);
        let page_of = page(&path).unwrap();
        assert_eq!(page_of, page(&path).unwrap());
        assert!(page_of.contains("&lt;odd&gt;&amp;&quot;name"), "{page_of}");
        for foreign in ["<script", "href=", "src=", "@import", "url("] {
            assert!(!page_of.contains(foreign), "{foreign}");
        }
        for group in ["crun", "libc6", "boot and settings"] {
            assert!(page_of.contains(&format!("<td>{group}</td>")), "{group}: {page_of}");
        }
    }
}

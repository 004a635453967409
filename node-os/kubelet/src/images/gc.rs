//! Image garbage collection: when the disk is too full, images that no container uses go,
//! those that were not used for longest first.

use super::Images;
use crate::cri;
use crate::mounts;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Percent of the disk in use above which images are removed, and down to which.
const HIGH: u64 = 85;
const LOW: u64 = 80;
/// An image is kept for this long after it was last asked for.
const YOUNG: Duration = Duration::from_secs(120);

/// Looks at the disk from time to time.
pub async fn run(images: Arc<Images>, disk: std::path::PathBuf, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        if let Err(error) = collect(&images, &disk, HIGH, LOW).await {
            tracing::warn!("image garbage collection: {error}");
        }
    }
}

/// Bytes to free so that `used` falls to `low` percent; 0 while it is not above `high`.
fn to_free(usage: mounts::Usage, high: u64, low: u64) -> u64 {
    if usage.capacity == 0 {
        return 0;
    }
    let used = usage.capacity.saturating_sub(usage.available);
    if used * 100 / usage.capacity <= high {
        return 0;
    }
    used.saturating_sub(usage.capacity / 100 * low)
}

/// Removes unused images until the disk is fine.
pub async fn collect(images: &Images, disk: &Path, high: u64, low: u64) -> Result<(), cri::CriError> {
    let Ok(usage) = mounts::usage(disk) else { return Ok(()) };
    let mut wanted = to_free(usage, high, low);
    if wanted == 0 {
        return Ok(());
    }
    let containers = images.cri().list_containers(None).await?;
    let used: HashSet<String> = containers
        .into_iter()
        .flat_map(|c| [c.image_ref, c.image_id, c.image.map(|i| i.image).unwrap_or_default()])
        .collect();
    let last_used = crate::lock(&images.last_used).clone();
    let now = Instant::now();
    let mut unused: Vec<cri::Image> = images
        .cri()
        .list_images()
        .await?
        .into_iter()
        .filter(|i| {
            !i.pinned && !used.contains(&i.id) && !i.repo_digests.iter().chain(&i.repo_tags).any(|n| used.contains(n))
        })
        .filter(|i| !i.repo_tags.iter().any(|t| t.contains("/pause:")))
        .filter(|i| last_used.get(&i.id).is_none_or(|at| now.duration_since(*at) > YOUNG))
        .collect();
    unused.sort_by_key(|i| last_used.get(&i.id).copied());
    for image in unused {
        if wanted == 0 {
            break;
        }
        images.cri().remove_image(&image.id).await?;
        crate::lock(&images.last_used).remove(&image.id);
        tracing::info!("removed unused image {:?} of {} bytes", image.repo_tags, image.size);
        wanted = wanted.saturating_sub(image.size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_while_there_is_room() {
        let usage = |available| mounts::Usage { capacity: 1000, available, ..Default::default() };
        for (available, expected) in [(500, 0), (150, 0), (140, 60), (0, 200)] {
            assert_eq!(to_free(usage(available), 85, 80), expected, "{available}");
        }
    }
}

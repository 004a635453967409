//! What `[image]` may say: words of the kernel's command line, packages, and paths of files in the image.

use super::value::{Fault, fault};
use crate::image::recipe::{self, PackageRecipe};
use crate::image::tree::LONGEST_NAME;
use node_metadata::{Role, StoreEngine};
use toml::Spanned;

/// Names the disk that an installer overwrites: the only word of kimg's own that is the operator's.
const INSTALL_TO: &str = "kimg.install-to=";
/// Words of the kernel's command line that kimg itself writes.
const OWN: &str = "kimg.";
/// Words of it that decide what is booted, and that kimg writes too.
const ROOT_WORDS: [&str; 5] = ["root=", "init=", "rdinit=", "dm-mod.", "dm_verity."];
/// The kernel reads 2047 characters (COMMAND_LINE_SIZE of x86), and kimg's own words and the loader's are among them.
pub(super) const MOST_KERNEL_ARGS: usize = 1500;
/// Where the image keeps nothing: these are mounted over or made anew at each boot.
const NOT_KEPT: [&str; 8] = ["/dev", "/proc", "/sys", "/run", "/tmp", "/var", "/state", "/boot"];

pub(super) fn kernel_word(word: &Spanned<String>, field: &str) -> Result<(), Fault> {
    let text = word.get_ref();
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(fault(word, field, "one word for each entry; split it into several"));
    }
    if let Some(disk) = text.strip_prefix(INSTALL_TO) {
        if disk.is_empty() || !disk.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(fault(word, field, format!("`{disk}` is no kernel name of a disk, such as vda or nvme0n1")));
        }
    } else if text.starts_with(OWN) {
        let message = format!(
            "`{text}`: words that begin with {OWN} are kimg's to write, all but {INSTALL_TO}DISK; leave it out"
        );
        return Err(fault(word, field, message));
    } else if ROOT_WORDS.iter().any(|own| text.starts_with(own)) {
        return Err(fault(word, field, format!("`{text}` decides which root is booted, and kimg writes that itself")));
    }
    Ok(())
}

pub(super) fn check_package(package: &Spanned<PackageRecipe>, field: &str) -> Result<(), Fault> {
    let recipe = package.get_ref();
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    if recipe.name.len() < 2 || !recipe.name.chars().all(fine) {
        return Err(fault(package, field, format!("`{}` is no name of a Debian package", recipe.name)));
    }
    if recipe.files.is_empty() || recipe.files.iter().any(|glob| !glob.starts_with('/')) {
        let message = format!(
            "say which files of {} are taken, by absolute path, e.g. files = [\"/usr/bin/{}\"]",
            recipe.name, recipe.name
        );
        return Err(fault(package, field, message));
    }
    Ok(())
}

pub(super) fn image_path(path: &Spanned<String>, (role, store): (Role, StoreEngine), field: &str) -> Result<(), Fault> {
    let text = path.get_ref();
    let parts: Vec<&str> = text.split('/').skip(1).collect();
    let whole = text.starts_with('/') && parts.iter().all(|part| !["", ".", ".."].contains(part));
    if !whole || text.chars().any(char::is_control) {
        return Err(fault(path, field, format!("`{text}` is no absolute path of a file in the image")));
    }
    if let Some(place) = NOT_KEPT.iter().find(|place| text.strip_prefix(**place).is_some_and(|r| r.starts_with('/'))) {
        let message = format!("{place} is not kept in the image; choose a place below /usr, /etc or /opt");
        return Err(fault(path, field, message));
    }
    if parts.iter().any(|part| part.len() > LONGEST_NAME) {
        return Err(fault(
            path,
            field,
            format!("a name in it has more than the {LONGEST_NAME} bytes that Linux takes"),
        ));
    }
    let own = recipe::paths_of(role, store).map_err(|error| fault(path, field, format!("{error:#}")))?;
    if own.contains_key(text) {
        return Err(fault(path, field, format!("{text} is a file of kimg itself; choose another path")));
    }
    if let Some(file) = own.keys().find(|file| is_below(file, text)) {
        return Err(fault(path, field, format!("{text} is a folder, with {file} in it; name a file")));
    }
    if let Some((above, _)) = own.iter().find(|(above, folder)| !**folder && is_below(text, above)) {
        return Err(fault(
            path,
            field,
            format!("{text} would lie below {above}, which is no folder; choose another path"),
        ));
    }
    Ok(())
}

pub(super) fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

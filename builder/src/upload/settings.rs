//! What providers are told of who the user is: from the environment, or from files that it names.

use crate::input;
use anyhow::{Context, Result};
use std::path::Path;

/// Where values come from: the environment, or a test.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A value, or none.
///
/// # Errors
/// The file that `NAME_FILE` names cannot be read, or others can read it; or the value is more than one line.
pub fn find(env: Environment<'_>, name: &str) -> Result<Option<String>> {
    let variable = format!("{name}_FILE");
    let (place, value) = match env(name) {
        Some(value) => (name, Some(value)),
        None => {
            let read = |file: String| read_private(Path::new(&file)).with_context(|| format!("reading {variable}"));
            (variable.as_str(), env(&variable).map(read).transpose()?)
        }
    };
    if value.as_ref().is_some_and(|value| value.chars().any(char::is_control)) {
        return input::bad(format!("the value of {place} has a line break or another control character; set it anew"));
    }
    Ok(value)
}

/// A value that must be there.
///
/// # Errors
/// It is not; then the error names both ways to give it.
pub fn need(env: Environment<'_>, name: &str, what: &str) -> Result<String> {
    match find(env, name)? {
        Some(value) => Ok(value),
        None => input::bad(format!("{name} is not set; it is {what}, or let {name}_FILE name a file with it")),
    }
}

/// A file with a secret, without the newline at its end.
///
/// # Errors
/// It cannot be read, or others can read it.
pub fn read_private(file: &Path) -> Result<String> {
    let text = input::text(file, input::SMALL)?;
    input::check_private(file)?;
    Ok(text.trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_value_comes_from_the_environment_or_a_private_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "t0ken\n").unwrap();
        let path = file.path().display().to_string();
        let env = |name: &str| match name {
            "A" => Some("a".to_string()),
            "B_FILE" => Some(path.clone()),
            "D" => Some("t0\nken".to_string()),
            _ => None,
        };
        assert_eq!(need(&env, "A", "x").unwrap(), "a");
        assert_eq!(need(&env, "B", "x").unwrap(), "t0ken");
        let error = need(&env, "D", "x").unwrap_err();
        assert!(error.is::<input::BadInput>() && error.to_string().contains("the value of D has"), "{error}");
        assert!(need(&env, "C", "a token").unwrap_err().to_string().contains("C_FILE"));
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = format!("{:#}", need(&env, "B", "x").unwrap_err());
        assert!(error.contains("chmod 600") && !error.contains("t0ken"), "{error}");
    }
}

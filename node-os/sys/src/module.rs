//! Kernel modules.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::Path;

/// Tells the kernel that the file is compressed.
const COMPRESSED_FILE: i32 = 4;

/// Loads the module in `path`. One that is loaded already is no error.
pub fn load(path: &Path, parameters: &str) -> io::Result<()> {
    let file = File::open(path).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot open kernel module {}: {error}", path.display()))
    })?;
    let parameters = CString::new(parameters).map_err(|_| io::Error::other("module parameters hold a NUL byte"))?;
    let flags = if path.extension().is_some_and(|end| end == "ko") { 0 } else { COMPRESSED_FILE };
    match rustix::system::finit_module(&file, &parameters, flags) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => {
            let error = io::Error::from(error);
            Err(io::Error::new(error.kind(), format!("cannot load kernel module {}: {error}", path.display())))
        }
    }
}

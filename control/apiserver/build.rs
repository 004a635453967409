//! Writes the OpenAPI documents of the built-in kinds, so that the server has them as bytes and
//! never makes them.  `src/openapi.rs` puts them together and custom kinds in.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use api::openapi::{self, Parts};

struct Out {
    dir: PathBuf,
    code: String,
}

impl Out {
    /// Writes one part, deflated, and gives the expression that names it.
    fn part(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.join(name);
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        let deflated = encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes everything");
        std::fs::write(&path, deflated).expect("OUT_DIR is writable");
        format!("Part {{ size: {}, deflated: include_bytes!({path:?}) }}", bytes.len())
    }

    fn document(&mut self, name: &str, group: &str, version: &str, parts: &Parts) {
        let hash = openapi::hash(&[&parts.paths, &parts.schemas]);
        let paths = self.part(&format!("{name}.paths"), &parts.paths);
        let schemas = self.part(&format!("{name}.schemas"), &parts.schemas);
        writeln!(
            self.code,
            "Builtin {{ group: {group:?}, version: {version:?}, hash: {hash:?}, paths: {paths}, schemas: {schemas} }},"
        )
        .expect("a string takes everything");
    }
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let dir = std::env::var_os("OUT_DIR").expect("cargo sets it");
    let mut out = Out { dir: Path::new(&dir).to_path_buf(), code: String::new() };
    let kinds = api::kinds::builtin();
    out.code.push_str("static V2: Builtin = [\n");
    out.document("v2", "", "", &openapi::v2_parts(kinds));
    out.code.push_str("][0];\nstatic V2_PROTOBUF: Builtin = [\n");
    out.document("v2pb", "", "", &openapi::v2_protobuf_parts(kinds));
    out.code.push_str("][0];\nstatic V3: &[Builtin] = &[\n");
    for (path, group, version) in openapi::group_versions(kinds) {
        let parts = openapi::v3_parts(kinds, &group, &version).expect("it has kinds");
        out.document(&path.replace('/', "_"), &group, &version, &parts);
    }
    out.code.push_str("];\n");
    std::fs::write(out.dir.join("openapi.rs"), &out.code).expect("OUT_DIR is writable");
}

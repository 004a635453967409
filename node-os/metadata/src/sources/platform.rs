//! What a machine offers to sources.

use crate::ReadAt;

/// A machine. Implemented by init for the real one, by tests for others.
pub trait Platform {
    /// A value of `/sys/class/dmi/id`, e.g. `product_serial`.
    fn dmi(&self, name: &str) -> Option<String>;
    /// The kernel's command line.
    fn kernel_line(&self) -> String;
    /// Block devices that may hold a drive with metadata: name, and a reader.
    fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)>;
    /// A file that QEMU hands over (fw_cfg), by its name.
    fn firmware_file(&self, name: &str) -> Option<Vec<u8>>;
    /// A `guestinfo` value of VMware.
    fn guest_info(&self, key: &str) -> Option<Vec<u8>>;
    /// Asks an HTTP server. Waiting, asking again while a server is slow or has too much to do, and limits of size are
    /// the implementation's business: what comes back is final.
    fn send(&self, request: &Request) -> Result<Answer, SourceError>;
}

/// A way to a metadata server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The first interfaces are up and have link-local addresses, and nothing else.
    LinkLocal,
    /// The machine has the address that DHCP gave it.
    Dhcp,
}

/// HTTP's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are HTTP's own")]
pub enum Method {
    Get,
    Put,
    Post,
}

impl Method {
    /// As it stands in a request.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Post => "POST",
        }
    }
}

/// What is asked of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// `http://HOST[:PORT]/PATH`. The host `[fe80::…%25nic]` stands for that address on each interface.
    pub url: String,
    /// Headers beside Host.
    pub headers: Vec<(&'static str, String)>,
    /// Body, may be empty.
    pub body: Vec<u8>,
    /// From a port below 1024, which proves that an administrator asks.
    pub low_port: bool,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

/// Why a source says nothing.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SourceError {
    /// The server is not there: other sources may be asked.
    #[error("{0}")]
    Absent(String),
    /// The server is there and answers with an error.
    #[error("{url} answers {status}")]
    Refused {
        /// What was asked.
        url: String,
        /// Its status.
        status: u16,
    },
    /// What it says cannot be used.
    #[error("{0}")]
    Unusable(String),
}

//! Images: pulling with policies and back-off, credentials, garbage collection, and the
//! archives that the node's own image carries.

mod archive;
mod credentials;
mod gc;
mod pull;

pub use archive::import_all;
pub use credentials::{Credentials, normalize, registry_of};
pub use gc::{collect, run as run_gc};
pub use pull::{Images, Pulled, Refusal};

//! What every controller has at hand.

use control_client::{Client, Recorder};

use crate::caches::Caches;
use crate::settings::Settings;

pub struct Context {
    pub client: Client,
    pub caches: Caches,
    pub events: Recorder,
    pub settings: Settings,
}

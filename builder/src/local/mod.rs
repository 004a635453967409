//! A cluster's VMs on this machine: QEMU in the background, a switch between them, nothing as root.
//!
//! Everything about them lies in `<cluster>/run/` (0700):
//! ```text
//! state.json          what runs, which ports, which tokens
//! images/HASH.raw     images that VMs have or had
//! switch.log          the switch process
//! switch.json         rules of its ports, while tests make the network worse
//! NODE/disk.raw       the VM's disk, a sparse copy of the image, grown
//! NODE/seed.img       its NoCloud drive
//! NODE/console.log    its serial console
//! NODE/{pid,qmp.sock,qemu.log}
//! NODE.{sw,vm}        the two ends of its network cable
//! _spareN.{sw,vm}     the same for a machine that is no node
//! ```
//! [`up`] converges: what runs is kept, what is missing is made.

pub mod accel;
pub mod api;
pub mod console;
pub mod disk;
pub mod down;
pub mod interrupt;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod rebuild;
mod releases;
pub mod state;
pub mod status;
pub mod stock;
pub mod switch;
pub mod up;

pub use accel::Accel;

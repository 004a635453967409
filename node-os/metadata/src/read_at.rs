//! Reading a file system image or device at any place, without changing it.

use std::io;

/// A device or image.
pub trait ReadAt {
    /// Fills `buffer` from `offset`, or fails.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let part = usize::try_from(offset).ok().and_then(|start| self.get(start..)?.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

pub(crate) fn bytes(device: &dyn ReadAt, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    device.read_at(offset, &mut buffer)?;
    Ok(buffer)
}

pub(crate) fn le16(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map_or(0, |part| u32::from(u16::from_le_bytes(part)))
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

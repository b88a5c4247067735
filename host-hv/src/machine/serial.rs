//! The serial port on the bus, with the host's side of it: one thread takes what the guest sends, another gives it bytes.
//! A vCPU's thread only changes the buffers.

use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::bus::MmioDevice;
use super::pl011::Pl011;
use crate::hypervisor::Line;

/// A serial port.
pub struct Serial {
    inner: Mutex<Inner>,
    /// Something was sent, read or closed.
    changed: Condvar,
    line: Box<dyn Line>,
}

#[derive(Default)]
struct Inner {
    port: Pl011,
    high: bool,
    closed: bool,
}

impl Serial {
    /// A port whose interrupt is this line.
    #[must_use]
    pub fn new(line: Box<dyn Line>) -> Self {
        Self { inner: Mutex::default(), changed: Condvar::new(), line }
    }

    /// Writes what the guest sends to `out`, until the port is closed and everything is written. A guest whose reader
    /// has gone runs on, and what it says is lost.
    pub fn print(&self, out: &mut dyn Write) {
        let mut gone = false;
        while let Some(bytes) = self.sent() {
            if let Err(error) = write(out, &bytes)
                && !gone
            {
                gone = true;
                tracing::warn!("What the guest prints is lost from here on: {error}");
            }
        }
    }

    /// Gives the guest bytes, as fast as it reads them. False: the port was closed before it had them all.
    pub fn type_in(&self, mut bytes: &[u8]) -> bool {
        let mut inner = self.lock();
        while !bytes.is_empty() {
            if inner.closed {
                return false;
            }
            let taken = inner.port.receive(bytes);
            bytes = &bytes[taken..];
            self.settle(&mut inner);
            if taken == 0 {
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
        }
        true
    }

    /// The machine has ended.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// What the guest has sent, once there is something; none when there never will be.
    fn sent(&self) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        while !inner.port.has_sent() {
            if inner.closed {
                return None;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let bytes = inner.port.take_sent();
        self.settle(&mut inner);
        Some(bytes)
    }

    /// Sets the line as the port wants it. Under the lock, so that lines are set in the order of states.
    fn settle(&self, inner: &mut Inner) {
        let high = inner.port.interrupts();
        if high != inner.high {
            inner.high = high;
            self.line.set(high);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MmioDevice for Serial {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        let mut inner = self.lock();
        let full = inner.port.room() == 0;
        let value = inner.port.read(offset);
        self.settle(&mut inner);
        if full && inner.port.room() > 0 {
            self.changed.notify_all();
        }
        u64::from(value)
    }

    fn write(&self, offset: u64, _size: u8, value: u64) {
        let mut inner = self.lock();
        let idle = !inner.port.has_sent();
        // Registers have sixteen bits at most; what is above is reserved.
        inner.port.write(offset, (value & 0xffff) as u16);
        self.settle(&mut inner);
        if idle && inner.port.has_sent() {
            self.changed.notify_all();
        }
    }
}

fn write(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[derive(Default)]
    struct Counted(Arc<AtomicUsize>);

    impl Line for Counted {
        fn set(&self, high: bool) {
            // Twice the edges, and whether it is high.
            let before = self.0.load(Ordering::Relaxed);
            assert_ne!(before % 2 == 1, high, "the line is set to what it is");
            self.0.store(before + 1, Ordering::Relaxed);
        }
    }

    #[test]
    fn bytes_go_through_in_both_directions_however_slow_the_guest_is() {
        let edges = Arc::new(AtomicUsize::new(0));
        let serial = Arc::new(Serial::new(Box::new(Counted(Arc::clone(&edges)))));
        let typed: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let (printer, typist) = (Arc::clone(&serial), Arc::clone(&serial));
        let printer = thread::spawn(move || {
            let mut out = Vec::new();
            printer.print(&mut out);
            out
        });
        let input = typed.clone();
        let typist = thread::spawn(move || typist.type_in(&input));
        // The guest's side: it wants interrupts of bytes that came, and echoes.
        serial.write(0x38, 4, 1 << 4);
        let mut left = typed.len();
        while left > 0 {
            if serial.read(0x18, 4) & (1 << 4 | 1 << 5) == 0 {
                let byte = serial.read(0, 4);
                serial.write(0, 4, byte);
                left -= 1;
            }
        }
        assert!(typist.join().unwrap());
        serial.close();
        assert_eq!(printer.join().unwrap(), typed);
        assert!(edges.load(Ordering::Relaxed) >= 2 && edges.load(Ordering::Relaxed).is_multiple_of(2));
        assert!(!serial.type_in(b"late"));
    }
}

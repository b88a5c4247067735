//! The way into a command: bytes that its pipe or terminal has no room for yet wait here, within the stream's credit.

use std::os::fd::AsFd;
use std::rc::Rc;

use nix::fcntl::{FcntlArg, fcntl};

use crate::sys::descriptor::{Descriptor, Moved};
use crate::sys::terminal;

/// Bytes that a pipe is made to hold once a stream fills it; an ordinary user's most (`pipe-max-size`).
const PIPE: i32 = 1024 * 1024;

/// A command's standard input.
#[derive(Debug)]
pub(crate) struct StdinPipe {
    fd: Option<Rc<Descriptor>>,
    is_terminal: bool,
    waiting: Vec<u8>,
    written: usize,
    /// Nothing more comes; close behind the last byte.
    ending: bool,
    /// Whether the last byte written ended a line: then one end-of-file character ends the input, else two do.
    at_line_start: bool,
    grown: bool,
}

impl StdinPipe {
    pub(crate) const fn new(fd: Option<Rc<Descriptor>>, is_terminal: bool) -> Self {
        Self {
            fd,
            is_terminal,
            waiting: Vec::new(),
            written: 0,
            ending: false,
            at_line_start: true,
            grown: false,
        }
    }

    /// Whether the command can still be sent anything.
    pub(crate) const fn is_open(&self) -> bool {
        self.fd.is_some() && !self.ending
    }

    /// The descriptor to wait for, where bytes wait.
    pub(crate) fn blocked(&self) -> Option<&Rc<Descriptor>> {
        self.fd.as_ref().filter(|_| self.written < self.waiting.len())
    }

    /// Takes bytes for the command: writes what goes now, keeps the rest. How many were written, of these or of those
    /// before; `Err` where the command has closed its input.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<usize, Closed> {
        if self.blocked().is_some() {
            self.waiting.extend_from_slice(bytes);
            return self.resume();
        }
        let written = self.write(bytes)?;
        if written < bytes.len() {
            self.waiting.clear();
            self.written = 0;
            self.waiting.extend_from_slice(&bytes[written..]);
            self.grow();
        }
        Ok(written)
    }

    /// Writes what waits, as far as it goes. How many bytes went.
    pub(crate) fn resume(&mut self) -> Result<usize, Closed> {
        let waiting = std::mem::take(&mut self.waiting);
        let result = self.write(&waiting[self.written..]);
        self.waiting = waiting;
        let written = result?;
        self.written += written;
        if self.written == self.waiting.len() {
            // A stream that once was blocked gives its buffer back when it is idle.
            self.waiting = Vec::new();
            self.written = 0;
            if self.ending {
                self.end_now();
            }
        }
        Ok(written)
    }

    /// Nothing more comes: closes the pipe once all before is written. A terminal gets its end-of-file character.
    pub(crate) fn end(&mut self) {
        self.ending = true;
        if self.blocked().is_none() {
            self.end_now();
        }
    }

    fn end_now(&mut self) {
        let Some(fd) = &self.fd else { return };
        if !self.is_terminal {
            self.fd = None;
            return;
        }
        let eof = [terminal::end_of_file(&fd.as_fd()); 2];
        // A terminal whose input is full of what nobody reads misses no end of it.
        let _ = fd.write(if self.at_line_start { &eof[..1] } else { &eof });
        self.ending = false;
        self.at_line_start = true;
    }

    /// The command is gone, or must see the end at once: what waits is dropped.
    pub(crate) fn close(&mut self) {
        self.fd = None;
        self.waiting = Vec::new();
        self.written = 0;
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Closed> {
        let mut written = 0;
        while let Some(fd) = self.fd.as_ref().filter(|_| written < bytes.len()) {
            match fd.write(&bytes[written..]) {
                Ok(Moved::Bytes(n)) => written += n,
                Ok(Moved::NotReady) => break,
                Err(_) => {
                    self.close();
                    return Err(Closed);
                }
            }
        }
        if written > 0 {
            self.at_line_start = bytes[written - 1] == b'\n';
        }
        if self.fd.is_none() { Err(Closed) } else { Ok(written) }
    }

    /// Makes the pipe hold more, once: a stream that fills it is a long one. Where the system has no more to give it
    /// stays as it is.
    fn grow(&mut self) {
        if let Some(fd) = self.fd.as_ref().filter(|_| !self.grown && !self.is_terminal) {
            self.grown = true;
            let _ = fcntl(fd.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE));
        }
    }
}

/// The command has closed its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

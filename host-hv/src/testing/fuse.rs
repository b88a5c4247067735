//! A guest's kernel, as far as it speaks FUSE: requests in, answers out, over memory of our own.

use std::ffi::CString;

use vm_memory::VolatileSlice;

use crate::fuse::abi::{IN_HEADER, OUT_HEADER, STATX_BTIME, init, op};
use crate::fuse::server::Server;
use crate::io::IoBuf;

/// What is known of a file after a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in stat(2)")]
pub struct Entry {
    pub node: u64,
    pub inode: u64,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub flags: u32,
}

/// A guest of this server.
pub struct Client<'s> {
    server: &'s Server,
    /// Who asks.
    pub ids: (u32, u32),
    /// And which process.
    pub pid: u32,
    unique: u64,
}

/// An error number, or the answer's bytes.
pub type Result<T> = std::result::Result<T, i32>;

impl<'s> Client<'s> {
    /// Mounts.
    pub fn mount(server: &'s Server) -> Self {
        let mut client = Self { server, ids: (0, 0), pid: 1, unique: 0 };
        let flags = u32::try_from(init::SUBMOUNTS | init::INIT_EXT).expect("low flags");
        let mut body = Vec::new();
        for word in [7, 41, 1 << 17, flags, 0] {
            body.extend_from_slice(&u32::to_le_bytes(word));
        }
        body.resize(64, 0);
        client.call(op::INIT, 0, &body, 256).expect("init");
        client
    }

    /// One request with room for `room` bytes of answer.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> Result<Vec<u8>> {
        self.unique += 1;
        let mut request = Vec::with_capacity(IN_HEADER + body.len());
        let length = u32::try_from(IN_HEADER + body.len()).expect("a request");
        request.extend_from_slice(&length.to_le_bytes());
        request.extend_from_slice(&opcode.to_le_bytes());
        request.extend_from_slice(&self.unique.to_le_bytes());
        request.extend_from_slice(&node.to_le_bytes());
        request.extend_from_slice(&self.ids.0.to_le_bytes());
        request.extend_from_slice(&self.ids.1.to_le_bytes());
        request.extend_from_slice(&self.pid.to_le_bytes());
        request.extend_from_slice(&[0; 4]);
        request.extend_from_slice(body);
        let mut reply = vec![0; OUT_HEADER + room];
        let written = raw(self.server, &mut request, &mut reply);
        if written == 0 {
            return Ok(Vec::new());
        }
        let error = i32::from_le_bytes(*reply[4..].first_chunk().expect("a header"));
        let unique = u64::from_le_bytes(*reply[8..].first_chunk().expect("a header"));
        assert_eq!(unique, self.unique, "the answer is another request's");
        reply.truncate(written);
        if error == 0 { Ok(reply.split_off(OUT_HEADER)) } else { Err(-error) }
    }

    /// A request that is a name.
    pub fn named(&mut self, opcode: u32, node: u64, before: &[u32], names: &[&str]) -> Result<Vec<u8>> {
        let mut body: Vec<u8> = before.iter().flat_map(|word| word.to_le_bytes()).collect();
        for name in names {
            body.extend_from_slice(CString::new(*name).expect("no zero").as_bytes_with_nul());
        }
        self.call(opcode, node, &body, 4096)
    }

    /// Looks a name up.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<Entry> {
        self.named(op::LOOKUP, parent, &[], &[name]).map(|raw| entry(&raw))
    }

    /// Looks a path up from the root.
    pub fn walk(&mut self, path: &str) -> Result<Entry> {
        let root = Entry { node: 1, inode: 1, size: 0, mode: 0, uid: 0, flags: 0 };
        path.split('/').try_fold(root, |at, name| self.lookup(at.node, name))
    }

    /// Makes a directory.
    pub fn mkdir(&mut self, parent: u64, name: &str) -> Result<Entry> {
        self.named(op::MKDIR, parent, &[0o755, 0], &[name]).map(|raw| entry(&raw))
    }

    /// Makes a file, open for reading and writing; its entry and its handle.
    pub fn create(&mut self, parent: u64, name: &str) -> Result<(Entry, u64)> {
        let raw = self.named(op::CREATE, parent, &[0o102, 0o644, 0, 0], &[name])?;
        Ok((entry(&raw), number(&raw, 128)))
    }

    /// Opens a file.
    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64> {
        let body: Vec<u8> = [flags, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        self.call(op::OPEN, node, &body, 64).map(|raw| number(&raw, 0))
    }

    /// Renames.
    pub fn rename(&mut self, from: u64, name: &str, to: u64, to_name: &str, flags: u32) -> Result<()> {
        let (low, high) = (to & 0xffff_ffff, to >> 32);
        let word = |value: u64| u32::try_from(value).expect("half");
        let before = [word(low), word(high), flags, 0];
        self.named(op::RENAME2, from, &before, &[name, to_name]).map(drop)
    }

    /// Reads.
    pub fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        body.extend_from_slice(&handle.to_le_bytes());
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&size.to_le_bytes());
        body.resize(40, 0);
        self.call(op::READ, 0, &body, size as usize)
    }

    /// Writes.
    pub fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<usize> {
        let mut body = Vec::new();
        body.extend_from_slice(&handle.to_le_bytes());
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&u32::try_from(data.len()).expect("a write").to_le_bytes());
        body.resize(40, 0);
        body.extend_from_slice(data);
        let raw = self.call(op::WRITE, 0, &body, 64)?;
        Ok(usize::try_from(number(&raw, 0)).expect("a count"))
    }

    /// When it was made, in seconds and nanoseconds; nothing where that is not known.
    pub fn born(&mut self, node: u64) -> Result<Option<(u64, u32)>> {
        let raw = self.call(op::STATX, node, &[0; 24], 512)?;
        assert_eq!(raw.len(), 288);
        let mask = u32::from_le_bytes(*raw[32..].first_chunk().expect("a mask"));
        let seconds = u64::from_le_bytes(*raw[112..].first_chunk().expect("a time"));
        let nanos = u32::from_le_bytes(*raw[120..].first_chunk().expect("a time"));
        Ok((mask & STATX_BTIME != 0).then_some((seconds, nanos)))
    }

    /// The attributes of a node.
    pub fn getattr(&mut self, node: u64) -> Result<Entry> {
        let raw = self.call(op::GETATTR, node, &[0; 16], 256)?;
        Ok(attributes(node, &raw[16..]))
    }

    /// The names in a directory, by requests with room for `room` bytes.
    pub fn list(&mut self, node: u64, room: u32, plus: bool) -> Result<Vec<String>> {
        let handle = number(&self.call(op::OPENDIR, node, &[0; 8], 64)?, 0);
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let mut body = Vec::new();
            body.extend_from_slice(&handle.to_le_bytes());
            body.extend_from_slice(&u64::to_le_bytes(offset));
            body.extend_from_slice(&room.to_le_bytes());
            body.resize(40, 0);
            let opcode = if plus { op::READDIRPLUS } else { op::READDIR };
            let raw = self.call(opcode, node, &body, room as usize)?;
            let mut rest = &raw[..];
            if rest.is_empty() {
                break;
            }
            while !rest.is_empty() {
                let entry = if plus { &rest[128..] } else { rest };
                let length = u32::from_le_bytes(*entry[16..].first_chunk().expect("a length")) as usize;
                offset = number(entry, 8);
                names.push(String::from_utf8(entry[24..24 + length].to_vec()).expect("text"));
                rest = &entry[24 + length.next_multiple_of(8)..];
            }
        }
        let mut body = handle.to_le_bytes().to_vec();
        body.resize(24, 0);
        self.call(op::RELEASEDIR, node, &body, 16)?;
        Ok(names)
    }
}

/// Hands raw memory to the server; returns the bytes of the answer.
pub fn raw(server: &Server, request: &mut [u8], reply: &mut [u8]) -> usize {
    let request = [IoBuf::from(VolatileSlice::from(request))];
    let (header, rest) = reply.split_at_mut(OUT_HEADER.min(reply.len()));
    // As Linux lays it out: the header apart.
    let reply = [IoBuf::from(VolatileSlice::from(header)), IoBuf::from(VolatileSlice::from(rest))];
    server.serve(&request, &reply)
}

fn number(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*raw[at..].first_chunk().expect("a number"))
}

fn entry(raw: &[u8]) -> Entry {
    attributes(number(raw, 0), &raw[40..])
}

fn attributes(node: u64, raw: &[u8]) -> Entry {
    let word = |at: usize| u32::from_le_bytes(*raw[at..].first_chunk().expect("a word"));
    Entry {
        node,
        inode: number(raw, 0),
        size: number(raw, 8),
        mode: word(60),
        uid: word(68),
        flags: word(84),
    }
}

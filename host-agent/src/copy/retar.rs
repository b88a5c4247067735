//! A copy as a tar archive: what `hospes cp VM:path -` writes to its stdout.
//!
//! The archive is POSIX's (pax): names, times and attributes that the old header cannot hold stand in extended
//! headers. Holes are written as zeros, because nobody can say where they are before they come.

use std::io::{self, Write};
use std::sync::Arc;

use hospes_protocol::copy::Done;
use hospes_protocol::copy::archive::{Attributes, Decoder, Record};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_tree::progress::Progress;
use hospes_tree::read::Source;
use hospes_tree::write::{Consume, unasked};
use hospes_tree::{Problems, Summary};
use tar::{Builder, EntryType, Header};

/// Bytes of a tar block.
const BLOCK: u64 = 512;

/// Zeros, for holes and padding.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Writes an archive's records as a tar archive.
pub struct TarWriter<W: Write> {
    decoder: Decoder,
    builder: Builder<W>,
    /// Top names that may come; the empty one stands for contents.
    admitted: Vec<Vec<u8>>,
    /// Path of the directory at hand, and where each directory's name begins in it.
    path: Vec<u8>,
    starts: Vec<usize>,
    /// The file under way: its length and what of it is written.
    file: Option<(u64, u64)>,
    /// Paths of the files with several names.
    links: Vec<Vec<u8>>,
    progress: Arc<Progress>,
    done: Done,
    problems: Problems,
}

impl<W: Write> TarWriter<W> {
    /// Writes what these sources stand for to `out`.
    pub fn new(out: W, sources: &[Source], progress: Arc<Progress>) -> Self {
        Self {
            decoder: Decoder::new(),
            builder: Builder::new(out),
            admitted: sources.iter().map(|source| source.name().to_vec()).collect(),
            path: Vec::new(),
            starts: Vec::new(),
            file: None,
            links: Vec::new(),
            progress,
            done: Done::default(),
            problems: Problems::default(),
        }
    }

    /// At the top, nothing comes but what was asked for.
    fn admit(&self, record: &Record<'_>) -> Result<(), WireError> {
        let name = match record {
            _ if !self.starts.is_empty() => return Ok(()),
            Record::Here(_) => &b""[..],
            Record::Enter { name, .. }
            | Record::File { name, .. }
            | Record::Symlink { name, .. }
            | Record::HardLink { name, .. }
            | Record::Fifo { name, .. } => name,
            _ => return Ok(()),
        };
        if self.admitted.iter().any(|admitted| admitted == name) {
            return Ok(());
        }
        Err(unasked(name))
    }

    fn join(&self, name: &[u8]) -> Vec<u8> {
        [&self.path, name].concat()
    }

    fn header(
        &mut self,
        path: &[u8],
        attributes: Attributes<'_>,
        kind: EntryType,
        size: u64,
        link: Option<&[u8]>,
    ) -> Result<(), WireError> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(attributes.mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        let mut extensions: Vec<(String, Vec<u8>)> = Vec::new();
        // The header's own fields get what fits; a reader of today takes the extensions.
        let fields = header.as_old_mut();
        if path.len() < fields.name.len() {
            fields.name[..path.len()].copy_from_slice(path);
        } else {
            let len = fields.name.len() - 1;
            fields.name[..len].copy_from_slice(&path[..len]);
            extensions.push(("path".to_owned(), path.to_vec()));
        }
        if let Some(link) = link {
            let len = link.len().min(fields.linkname.len() - 1);
            fields.linkname[..len].copy_from_slice(&link[..len]);
            if len < link.len() {
                extensions.push(("linkpath".to_owned(), link.to_vec()));
            }
        }
        header.set_mtime(u64::try_from(attributes.seconds).unwrap_or(0));
        if attributes.nanoseconds > 0 || attributes.seconds < 0 {
            extensions.push(("mtime".to_owned(), decimal(attributes.seconds, attributes.nanoseconds)));
        }
        for (name, value) in attributes.xattrs() {
            if let Ok(name) = std::str::from_utf8(name) {
                extensions.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
            }
        }
        header.set_cksum();
        let pairs = extensions.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(pairs).map_err(|error| failed(&error))?;
        self.builder.get_mut().write_all(header.as_bytes()).map_err(|error| failed(&error))?;
        self.progress.entry();
        Ok(())
    }

    fn write(&mut self, data: &[u8]) -> Result<(), WireError> {
        if let Some((_, written)) = &mut self.file {
            *written += data.len() as u64;
        }
        self.builder.get_mut().write_all(data).map_err(|error| failed(&error))
    }

    fn zeros(&mut self, mut len: u64) -> Result<(), WireError> {
        while len > 0 {
            let some = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROS.len());
            self.write(&ZEROS[..some])?;
            len -= some as u64;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), WireError> {
        let (size, _) = self.file.take().unwrap_or((0, 0));
        self.done.files += 1;
        self.done.bytes += size;
        let padding = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
        self.builder.get_mut().write_all(&ZEROS[..padding]).map_err(|error| failed(&error))
    }
}

impl<W: Write + Send> Consume for TarWriter<W> {
    fn decoder(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    fn record(&mut self, record: &Record<'_>) -> Result<(), WireError> {
        self.admit(record)?;
        match *record {
            Record::Here(attributes) => {
                self.starts.push(0);
                self.done.directories += 1;
                self.header(b"./", attributes.unwrap_or(PLAIN), EntryType::Directory, 0, None)
            }
            Record::Enter { name, attributes } => {
                self.starts.push(self.path.len());
                self.path.extend_from_slice(name);
                self.path.push(b'/');
                self.done.directories += 1;
                let path = self.path.clone();
                self.header(&path, attributes.unwrap_or(PLAIN), EntryType::Directory, 0, None)
            }
            Record::Leave => {
                self.path.truncate(self.starts.pop().unwrap_or(0));
                Ok(())
            }
            Record::File { name, attributes, size, linked, .. } => {
                let path = self.join(name);
                self.header(&path, attributes, EntryType::Regular, size, None)?;
                if linked {
                    self.links.push(path);
                }
                self.file = Some((size, 0));
                Ok(())
            }
            Record::Data(data) => {
                self.progress.add(data.len() as u64);
                self.write(data)
            }
            Record::Hole(len) => self.zeros(len),
            Record::End => self.end(),
            Record::Broken(fault) => {
                // Its length stands in its header already: what is missing is filled up, and said.
                let left = self.file.map_or(0, |(size, written)| size - written);
                self.problems.add(&self.path, fault.to_error());
                self.zeros(left)?;
                self.end()
            }
            Record::Symlink { name, attributes, target } => {
                self.done.links += 1;
                let path = self.join(name);
                self.header(&path, attributes, EntryType::Symlink, 0, Some(target))
            }
            Record::HardLink { name, to } => {
                self.done.links += 1;
                let first = usize::try_from(to).ok().and_then(|to| self.links.get(to)).cloned();
                let first = first.ok_or_else(|| WireError::protocol("Peer sent a hard link to no file"))?;
                let path = self.join(name);
                self.header(&path, PLAIN, EntryType::Link, 0, Some(&first))
            }
            Record::Fifo { name, attributes } => {
                self.done.links += 1;
                let path = self.join(name);
                self.header(&path, attributes, EntryType::Fifo, 0, None)
            }
            Record::Skipped { name, fault } => {
                let path = self.join(name);
                self.problems.add(&path, fault.to_error());
                Ok(())
            }
            Record::Total { entries, bytes } => {
                self.progress.expect(entries, bytes);
                Ok(())
            }
        }
    }

    fn summary(&mut self) -> Result<Summary, WireError> {
        self.builder.finish().map_err(|error| failed(&error))?;
        self.builder.get_mut().flush().map_err(|error| failed(&error))?;
        self.done.problems = self.problems.count();
        Ok(Summary { done: self.done, problems: std::mem::take(&mut self.problems) })
    }
}

const PLAIN: Attributes<'_> = Attributes { mode: 0o755, seconds: 0, nanoseconds: 0, xattrs: &[] };

/// A time as pax has it: decimal seconds, negative ones too.
fn decimal(seconds: i64, nanoseconds: u32) -> Vec<u8> {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}").into_bytes();
    }
    // -1 second and 0.25 after it is -0.75.
    let whole = seconds.saturating_add(1).unsigned_abs();
    format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds).into_bytes()
}

fn failed(error: &io::Error) -> WireError {
    WireError::new(ErrorKind::OS, format_args!("Cannot write the tar archive: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_negative_decimals() {
        assert_eq!(decimal(5, 25), b"5.000000025");
        assert_eq!(decimal(-1, 250_000_000), b"-0.750000000");
        assert_eq!(decimal(-5, 0), b"-5.000000000");
        assert_eq!(decimal(-5, 1), b"-4.999999999");
    }

    fn written(records: &[Record<'_>]) -> Result<Vec<u8>, WireError> {
        let mut payload = Vec::new();
        records.iter().for_each(|record| record.encode(&mut payload));
        let sources = [Source::new(b"d").expect("a path"), Source::new(b"f").expect("a path")];
        let mut writer = TarWriter::new(Vec::new(), &sources, Arc::default());
        writer.frame(&payload)?;
        writer.finish()?;
        Ok(writer.builder.get_ref().clone())
    }

    #[test]
    fn an_archive_is_what_other_readers_read() {
        let long = [b'n'; 255];
        let mut xattrs = Vec::new();
        hospes_protocol::copy::archive::put_xattr(b"user.a", b"\0=\n", &mut xattrs);
        let plain = Attributes { mode: 0o644, seconds: 1, nanoseconds: 5, xattrs: &xattrs };
        let bytes = written(&[
            Record::Enter { name: b"d", attributes: Some(plain) },
            Record::File { name: &long, attributes: plain, size: 700, linked: true, sparse: true },
            Record::Data(&[7; 600]),
            Record::Hole(100),
            Record::End,
            Record::HardLink { name: b"h", to: 0 },
            Record::Symlink { name: b"s", attributes: plain, target: &[b't'; 300] },
            Record::Leave,
        ])
        .unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            io::Read::read_to_end(&mut entry, &mut content).unwrap();
            let link = entry.link_name_bytes().map(|link| link.len());
            seen.push((entry.path_bytes().len(), entry.header().entry_type(), content.len(), link));
        }
        let expected = [
            (2, EntryType::Directory, 0, None),
            (257, EntryType::Regular, 700, None),
            (3, EntryType::Link, 0, Some(257)),
            (3, EntryType::Symlink, 0, Some(300)),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_name_that_was_not_asked_for_is_refused() {
        let error = written(&[Record::Symlink { name: b"other", attributes: PLAIN, target: b"x" }]);
        assert_eq!(error.unwrap_err().kind, ErrorKind::PROTOCOL);
    }
}

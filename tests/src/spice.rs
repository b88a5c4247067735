//! The host's end of spice-vdagent, beside which ours is seen: as much of a SPICE client as copies, pastes and asks for a
//! size (`spice/vd_agent.h`). The guest's end is Debian's.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The words of QEMU's that give a guest the port which spice-vdagent looks for.
pub const WORDS: [&str; 4] = [
    "-chardev",
    "socket,id=spice,path=spice.sock,server=on,wait=off",
    "-device",
    "virtserialport,chardev=spice,name=com.redhat.spice.0",
];

const CLIENT: u32 = 1;
const PROTOCOL: u32 = 1;
const MONITORS_CONFIG: u32 = 2;
const CLIPBOARD: u32 = 4;
const ANNOUNCE: u32 = 6;
const GRAB: u32 = 7;
const REQUEST: u32 = 8;
/// Monitors, replies, the clipboard on demand, several selections: bits 1, 2, 5 and 6.
const CAPABILITIES: u32 = 0b110_0110;
/// Bytes of a message that are taken.
const MOST: usize = 64 << 20;
/// Bytes of a chunk that the guest takes.
const CHUNK: usize = 2048;
const TEXT: u32 = 1;
const PNG: u32 = 2;

/// A SPICE client, as the guest sees it.
#[derive(Debug)]
pub struct Spice {
    stream: UnixStream,
    /// Bytes of a message that has not come whole.
    rest: Vec<u8>,
    /// What the guest has to paste.
    grabbed: Vec<u32>,
    /// What we have to paste.
    ours: Option<(u32, Vec<u8>)>,
}

impl Spice {
    /// Connects to the guest's port. Nobody need listen there yet.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("{}", socket.display()))?;
        Ok(Self { stream, rest: Vec::new(), grabbed: Vec::new(), ours: None })
    }

    /// Waits until the guest has said what it can, which it does once somebody's session has an agent.
    pub fn meet(&mut self, limit: Duration) -> Result<()> {
        self.say(ANNOUNCE, &[1_u32.to_le_bytes(), CAPABILITIES.to_le_bytes()].concat())?;
        let heard = self.until(limit, |_, kind, _| Ok((kind == ANNOUNCE).then_some(())))?;
        heard.context("spice-vdagentd did not say what it can")
    }

    /// Offers what was copied on the host, gives it to whoever pastes, and asks `pasted` in between whether that is done.
    pub fn offer(
        &mut self,
        kind: &str,
        bytes: &[u8],
        limit: Duration,
        mut pasted: impl FnMut() -> Result<bool> + Send,
    ) -> Result<bool> {
        let kind = number(kind)?;
        self.ours = Some((kind, bytes.to_vec()));
        self.say(GRAB, &[[0; 4], kind.to_le_bytes()].concat())?;
        let began = Instant::now();
        while began.elapsed() < limit {
            // The program that pastes in the guest waits for us meanwhile.
            let mut done = false;
            std::thread::scope(|scope| -> Result<()> {
                let pasting = scope.spawn(&mut pasted);
                while !pasting.is_finished() {
                    self.until(Duration::from_millis(100), |_, _, _| Ok(None::<()>))?;
                }
                done = pasting.join().unwrap_or_else(|_| bail!("pasting failed"))?;
                Ok(())
            })?;
            if done {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What was copied in the guest; `None` where the host is offered nothing, or given nothing, in time.
    pub fn take(&mut self, kind: &str, limit: Duration) -> Result<Option<Vec<u8>>> {
        let kind = number(kind)?;
        let began = Instant::now();
        let offered = |spice: &mut Self, _: u32, _: &[u8]| Ok(spice.grabbed.contains(&kind).then_some(()));
        if !self.grabbed.contains(&kind) && self.until(limit, offered)?.is_none() {
            return Ok(None);
        }
        self.say(REQUEST, &[[0; 4], kind.to_le_bytes()].concat())?;
        let left = limit.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
        self.until(left, |_, heard, body| {
            Ok((heard == CLIPBOARD).then(|| body.get(8..).unwrap_or(&[]).to_vec()))
        })
    }

    /// Forgets what the guest has offered.
    pub fn forget(&mut self) -> Result<()> {
        self.until(Duration::from_millis(200), |_, _, _| Ok(None::<()>))?;
        self.grabbed.clear();
        Ok(())
    }

    /// Asks for one monitor of this size.
    pub fn monitor(&mut self, width: u16, height: u16) -> Result<()> {
        let mut body = Vec::new();
        for number in [1, 0, u32::from(height), u32::from(width), 32, 0, 0] {
            body.extend(number.to_le_bytes());
        }
        self.say(MONITORS_CONFIG, &body)
    }

    fn say(&mut self, kind: u32, body: &[u8]) -> Result<()> {
        let mut message = Vec::with_capacity(20 + body.len());
        message.extend(PROTOCOL.to_le_bytes());
        message.extend(kind.to_le_bytes());
        message.extend(0_u64.to_le_bytes());
        message.extend(u32::try_from(body.len())?.to_le_bytes());
        message.extend(body);
        self.stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        for chunk in message.chunks(CHUNK) {
            self.stream.write_all(&CLIENT.to_le_bytes())?;
            self.stream.write_all(&u32::try_from(chunk.len())?.to_le_bytes())?;
            self.stream.write_all(chunk)?;
        }
        Ok(())
    }

    /// Takes messages, and answers requests, until `each` has what it wants or the time is over.
    fn until<T>(
        &mut self,
        limit: Duration,
        mut each: impl FnMut(&mut Self, u32, &[u8]) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let began = Instant::now();
        loop {
            while self.rest.len() >= 20 {
                let word = |at: usize| {
                    u32::from_le_bytes([
                        self.rest[at],
                        self.rest[at + 1],
                        self.rest[at + 2],
                        self.rest[at + 3],
                    ])
                };
                let (kind, len) = (word(4), word(16) as usize);
                ensure!(len <= MOST, "spice-vdagentd sends {len} bytes at once");
                if self.rest.len() < 20 + len {
                    break;
                }
                let body = self.rest[20..20 + len].to_vec();
                self.rest.drain(..20 + len);
                self.obey(kind, &body)?;
                if let Some(answer) = each(self, kind, &body)? {
                    return Ok(Some(answer));
                }
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() || !self.chunk(left)? {
                return Ok(None);
            }
        }
    }

    fn obey(&mut self, kind: u32, body: &[u8]) -> Result<()> {
        let words = |body: &[u8]| -> Vec<u32> {
            body.chunks_exact(4)
                .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
                .collect()
        };
        match kind {
            GRAB if body.first() == Some(&0) => self.grabbed = words(body).split_off(1),
            REQUEST => {
                let wanted = words(body).get(1).copied();
                if let Some((kind, bytes)) = self.ours.clone()
                    && wanted == Some(kind)
                {
                    self.say(CLIPBOARD, &[&[0; 4], &kind.to_le_bytes()[..], &bytes].concat())?;
                }
            }
            _ => (),
        }
        Ok(())
    }

    /// One chunk of the guest's; false where none came in time.
    fn chunk(&mut self, limit: Duration) -> Result<bool> {
        self.stream.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        let mut head = [0; 8];
        match self.stream.read(&mut head) {
            Ok(0) => bail!("the guest's port closed"),
            Ok(read) => {
                self.stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                self.stream.read_exact(&mut head[read..])?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        ensure!(len <= MOST, "spice-vdagentd sends {len} bytes at once");
        let at = self.rest.len();
        self.rest.resize(at + len, 0);
        Ok(self.stream.read_exact(&mut self.rest[at..]).map(|()| true)?)
    }
}

fn number(kind: &str) -> Result<u32> {
    match kind {
        "image/png" => Ok(PNG),
        kind if kind.starts_with("text/plain") => Ok(TEXT),
        other => bail!("spice has no number for {other}"),
    }
}

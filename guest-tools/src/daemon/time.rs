//! A host's connection about the clock: it names occasions, we ask it for the time, do what is to be done, and report.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameBuffer, FrameId};
use hospes_protocol::keys::PublicKey;
use hospes_protocol::time::{Deed, Keeper, Occasion, Probe, Report, Setting, Stamp, Time};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::transport::Stream;
use super::{Daemon, lock};
use crate::audit;
use crate::time::estimate::{Burst, Sample};
use crate::time::keeper::InCharge;
use crate::time::mind::{Act, Mind, Moment};
use crate::time::ptp::Device;
use crate::time::{chrony, kernel, words};
use crate::verb::Verb;

/// How long the host may take for one answer, and to take what we write.
const ANSWER: Duration = Duration::from_secs(2);

/// The clock, as all hosts' connections have it.
#[derive(Debug)]
pub(super) struct Times {
    /// Whether the clock is ours to set.
    ours: bool,
    mind: Mutex<Mind>,
    /// Who was in charge when it was last asked.
    in_charge: Mutex<Option<InCharge>>,
    device: Option<Device>,
    /// There from the first look of a boot on.
    mark: PathBuf,
    /// Counts the times that this machine has slept.
    woke: watch::Sender<u64>,
    /// Held by the connection whose timer runs: one is enough.
    lead: Semaphore,
}

impl Times {
    pub(super) fn new(ours: bool, run: &Path) -> Self {
        let mark = run.join("time-set");
        Self {
            ours,
            mind: Mutex::new(Mind::new(mark.exists())),
            in_charge: Mutex::default(),
            device: if ours { Device::find() } else { None },
            mark,
            woke: watch::Sender::new(0),
            lead: Semaphore::new(1),
        }
    }

    /// Whether the clock is ours to set.
    pub(super) const fn is_ours(&self) -> bool {
        self.ours
    }

    /// Whether a trusted host is there whose time is kept.
    pub(super) fn is_kept(&self) -> bool {
        self.lead.available_permits() == 0
    }

    /// This machine has slept.
    pub(super) fn woke(&self) {
        self.woke.send_modify(|times| *times += 1);
    }

    fn decide(&self, moment: &Moment) -> Act {
        let mut mind = lock(&self.mind);
        let before = mind.is_settled();
        let act = mind.decide(moment);
        if mind.is_settled()
            && !before
            && let Err(error) = std::fs::write(&self.mark, "")
        {
            tracing::warn!("{} cannot be written: {error}", self.mark.display());
        }
        act
    }

    fn wait(&self) -> Option<Duration> {
        lock(&self.mind).wait()
    }

    fn known(&self) -> Option<InCharge> {
        self.in_charge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn find(&self) -> InCharge {
        let found = InCharge::find().await;
        *lock(&self.in_charge) = Some(found.clone());
        found
    }
}

/// Serves a connection to its end. `payload` is its first request.
///
/// # Errors
/// What the host is to be told last.
pub(super) async fn serve(
    daemon: &Arc<Daemon>,
    stream: &Stream,
    buffer: FrameBuffer,
    due: &mut Vec<u8>,
    payload: &[u8],
    host: PublicKey,
) -> Result<(), WireError> {
    let Time { occasion } = codec::decode(payload).map_err(WireError::protocol)?;
    let mut keeping = Keeping {
        daemon,
        stream,
        buffer,
        out: std::mem::take(due),
        host,
        stays: occasion == Occasion::OPENED,
        serial: 0,
        pending: Some(occasion),
        held: false,
    };
    match keeping.run().await {
        Err(End::Gone) => Ok(()),
        Err(End::Fault(error)) => {
            due.append(&mut keeping.out);
            Err(error)
        }
        Ok(never) => match never {},
    }
}

enum End {
    Gone,
    /// The host is told why.
    Fault(WireError),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// A message that has no place here, or is none.
fn fault(error: impl std::fmt::Display) -> End {
    End::Fault(WireError::protocol(error))
}

struct Keeping<'a> {
    daemon: &'a Arc<Daemon>,
    stream: &'a Stream,
    buffer: FrameBuffer,
    out: Vec<u8>,
    host: PublicKey,
    /// The host stays: it is there for our own looks too.
    stays: bool,
    serial: u64,
    /// An occasion that nothing has been done about.
    pending: Option<Occasion>,
    /// The last thing done was to hold: said once.
    held: bool,
}

impl Keeping<'_> {
    async fn run(&mut self) -> Result<std::convert::Infallible, End> {
        let times = &self.daemon.times;
        let mut woke = times.woke.subscribe();
        let mut lead: Option<SemaphorePermit<'_>> = None;
        let mut next = None;
        loop {
            if let Some(occasion) = self.pending.take() {
                self.admitted()?;
                self.attend(occasion).await?;
                next = times.wait().map(|wait| Instant::now() + wait);
            }
            self.flush().await?;
            tokio::select! {
                read = self.stream.read(self.buffer.space()) => self.filled(read?)?,
                Ok(()) = woke.changed(), if self.stays => self.note(Occasion::GUEST_WOKE),
                Ok(permit) = times.lead.acquire(), if self.stays && lead.is_none() => lead = Some(permit),
                () = reached(next), if lead.is_some() => self.note(Occasion::STEADY),
            }
            while let Some(stamp) = self.take()? {
                // The answer to a probe that was given up.
                tracing::debug!("The host's answer {} comes late", stamp.serial);
            }
        }
    }

    /// The policy, and whom it trusts, may have changed since.
    fn admitted(&self) -> Result<(), End> {
        let trusted = self.daemon.trust().hosts.iter().any(|host| host.key == self.host);
        if !trusted {
            return Err(End::Fault(self.daemon.trust().refusal(&self.host)));
        }
        if self.daemon.config().verbs.allows(Verb::Time) {
            return Ok(());
        }
        let error = WireError::new(ErrorKind::FORBIDDEN, "The guest's policy does not allow time");
        Err(End::Fault(error.hint("In the guest: [verbs] time in /etc/hospes/tools.toml")))
    }

    /// Keeps the occasion that tells more.
    fn note(&mut self, occasion: Occasion) {
        let more = |before: Occasion| occasion.tears() || !before.tears();
        if self.pending.is_none_or(more) {
            self.pending = Some(occasion);
        }
    }

    /// Measures, does what is to be done, and reports.
    async fn attend(&mut self, occasion: Occasion) -> Result<(), End> {
        let times = &self.daemon.times;
        // A torn clock does not wait for systemd's answer: it is set whoever is in charge.
        let (mut in_charge, measured) = match times.known() {
            Some(known) if occasion.tears() => (known, self.measure().await?),
            _ => {
                let (found, measured) = tokio::join!(times.find(), self.measure());
                (found, measured?)
            }
        };
        let Some(sample) = measured else { return Ok(()) };
        let setting = if times.ours { self.daemon.config().time.mode.setting() } else { Setting::OFF };
        let offset = offset_of(&sample)?;
        let moment = Moment {
            occasion,
            offset,
            error: sample.error,
            keeper: in_charge.keeper,
            fed: in_charge.keeper == Keeper::CHRONY && chrony::listens(),
            setting,
            at: kernel::boot()?,
            frequency: kernel::frequency().unwrap_or(0),
        };
        let act = times.decide(&moment);
        let (deed, mut moved) = self.perform(act, &sample, &moment);
        let mut left = if deed == Deed::STEPPED { offset - moved } else { offset };
        if deed == Deed::STEPPED {
            in_charge = times.find().await;
            // What was measured in the first moments of a machine that goes on may be far from exact.
            if let Some(again) = self.measure().await? {
                left = offset_of(&again)?;
                let second = Moment { offset: left, error: again.error, ..moment };
                if occasion.tears()
                    && let Act::Step(by) = times.decide(&second)
                {
                    let (again, by) = self.perform(Act::Step(by), &again, &second);
                    if again == Deed::STEPPED {
                        moved += by;
                        left -= by;
                    }
                }
            }
            if in_charge.keeper == Keeper::CHRONY {
                tokio::spawn(tell_chrony(sample, moment.setting == Setting::FULL));
            }
        }
        let report = Report {
            occasion,
            offset_ns: offset,
            error_ns: sample.error,
            round_trip_ns: sample.round_trip,
            source: sample.source,
            keeper: in_charge.keeper,
            fed: in_charge.keeper == Keeper::CHRONY && chrony::listens() && moment.setting == Setting::FULL,
            by: in_charge.unit,
            setting,
            deed,
            moved_ns: moved,
            left_ns: left,
        };
        frame::put(FrameId::TIME_REPORT, &report, &mut self.out);
        self.flush().await
    }

    fn perform(&mut self, act: Act, sample: &Sample, moment: &Moment) -> (Deed, i64) {
        let held = std::mem::replace(&mut self.held, act == Act::Hold);
        let (done, deed, moved) = match act {
            Act::Leave => return (Deed::NOTHING, 0),
            Act::Hold => {
                if !held {
                    let ahead = words(-moment.offset);
                    tracing::warn!(
                        "The clock is {ahead} ahead of the host's, and is not set back: hospes time VM sync does that"
                    );
                }
                return (Deed::HELD, 0);
            }
            // The moment that has passed since the measurement is in the estimate.
            Act::Step(_) => match offset_of(sample) {
                Ok(by) => (kernel::step(by), Deed::STEPPED, by),
                Err(_) => return (Deed::FAILED, 0),
            },
            Act::Slew { by, frequency } => {
                let frequency = frequency.map_or(Ok(()), kernel::set_frequency);
                (frequency.and_then(|()| kernel::slew(by)), Deed::SLEWED, by)
            }
            Act::Feed => (feed(sample), Deed::FED, 0),
        };
        if let Err(error) = done {
            let what = if act == Act::Feed { "chrony cannot be fed" } else { "The clock cannot be set" };
            tracing::error!("{what}: {error}");
            return (Deed::FAILED, 0);
        }
        if deed == Deed::STEPPED {
            let bound = words(i64::try_from(sample.error).unwrap_or(i64::MAX));
            let text = format!(
                "The clock is set by {} ({bound} at most wrong): {}",
                words(moved),
                moment.occasion.words()
            );
            audit::clock(&self.host, &text);
        }
        (deed, moved)
    }

    /// The host's clock by a few exchanges, or by a device; none where the host does not answer.
    async fn measure(&mut self) -> Result<Option<Sample>, End> {
        let device = self.daemon.times.device.as_ref().and_then(Device::sample);
        let mut burst = Burst::default();
        while !burst.is_enough() {
            match timeout(ANSWER, self.exchange()).await {
                Ok(Some(Ok(sample))) => burst.take(sample),
                Ok(Some(Err(end))) => return Err(end),
                // Something happened meanwhile: what was measured before may be of another time.
                Ok(None) => burst = Burst::default(),
                // A write that was cut short cannot be taken up again.
                Err(_) if !self.out.is_empty() => return Err(End::Gone),
                Err(_) => break,
            }
        }
        let exchanged = burst.best();
        // The device shows the host's clock, unless it is that of another machine: they have to agree.
        Ok(match (device, exchanged) {
            (Some(device), Some(other))
                if device.ahead.abs_diff(other.ahead) <= other.error + device.error =>
            {
                Some(Sample { round_trip: other.round_trip, ..device })
            }
            (_, exchanged) => exchanged,
        })
    }

    /// One exchange; none where a new occasion came meanwhile.
    async fn exchange(&mut self) -> Option<Result<Sample, End>> {
        self.try_exchange().await.transpose()
    }

    async fn try_exchange(&mut self) -> Result<Option<Sample>, End> {
        let before = self.pending;
        self.serial += 1;
        frame::put(FrameId::TIME_PROBE, &Probe { serial: self.serial }, &mut self.out);
        let asked = kernel::boot()?;
        self.flush().await?;
        loop {
            let read = self.stream.read(self.buffer.space()).await?;
            let answered = kernel::boot()?;
            self.filled(read)?;
            while let Some(stamp) = self.take()? {
                if stamp.serial == self.serial {
                    if self.pending != before {
                        return Ok(None);
                    }
                    return Sample::of(asked, stamp, answered).map(Some).map_err(fault);
                }
            }
        }
    }

    fn filled(&mut self, read: usize) -> Result<(), End> {
        if read == 0 {
            return Err(End::Gone);
        }
        self.buffer.filled(read);
        Ok(())
    }

    /// The next stamp in the buffer; occasions on the way to it are noted.
    fn take(&mut self) -> Result<Option<Stamp>, End> {
        while let Some(frame) = self.buffer.take().map_err(fault)? {
            match frame.id {
                FrameId::TIME_STAMP => return Ok(Some(frame.decode().map_err(fault)?)),
                FrameId::TIME => {
                    let Time { occasion } = frame.decode().map_err(fault)?;
                    self.note(occasion);
                }
                FrameId::BYE => return Err(End::Gone),
                FrameId::UNKNOWN => {}
                id if id.name().is_none() => {
                    frame::put(
                        FrameId::UNKNOWN,
                        &hospes_protocol::error::Unknown { id: id.0 },
                        &mut self.out,
                    );
                }
                id => return Err(fault(format!("{id} is out of place about the clock"))),
            }
        }
        Ok(None)
    }

    async fn flush(&mut self) -> Result<(), End> {
        if !self.out.is_empty() {
            timeout(ANSWER, self.stream.write_all(&self.out)).await.map_err(|_| End::Gone)??;
            self.out.clear();
        }
        Ok(())
    }
}

/// Nanoseconds that the host is ahead now.
fn offset_of(sample: &Sample) -> io::Result<i64> {
    Ok(sample.ahead.saturating_sub(kernel::real_ahead()?))
}

fn feed(sample: &Sample) -> io::Result<()> {
    chrony::feed(kernel::now(nix::time::ClockId::CLOCK_REALTIME)?, offset_of(sample)?)
}

/// chrony was not asked before the clock was set: it forgets what it measured before, and has a first sample of now.
async fn tell_chrony(sample: Sample, fed: bool) {
    if let Err(error) = chrony::forget_measurements().await {
        tracing::warn!("chrony was not told that the clock was set: {error}");
    }
    if fed
        && chrony::listens()
        && let Err(error) = feed(&sample)
    {
        tracing::warn!("chrony cannot be fed: {error}");
    }
}

async fn reached(next: Option<Instant>) {
    match next {
        Some(next) => sleep_until(next).await,
        None => std::future::pending().await,
    }
}

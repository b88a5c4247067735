use std::sync::Arc;

use super::super::engine::tests::Fake;
use super::super::wire::{HEAD, Told};
use super::*;

const TABLE: &[u8] =
    b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /srv rw - xfs b rw\n3 1 0:5 / /proc rw - proc proc rw\n";
const LONG: u64 = 600_000;
/// Passes while a test waits for it; long enough to be frozen first on a machine that has much to do.
const SHORT: u64 = 2_000;

/// A helper in this process, over a machine of our own making.
struct Helped {
    folder: tempfile::TempDir,
    fake: Arc<Fake>,
}

impl Helped {
    fn start(fake: Fake) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket(folder.path())).unwrap();
        let fake = Arc::new(fake);
        let (edge, run) = (Arc::clone(&fake), folder.path().to_owned());
        // It serves until the test's process ends.
        thread::spawn(move || serve(&listener, &*edge, &run, false));
        Self { folder, fake }
    }

    fn caller(&self) -> Caller {
        let stream = UnixStream::connect(socket(self.folder.path())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Caller(stream)
    }

    fn frozen(&self, timeout_ms: u64) -> Caller {
        let mut caller = self.caller();
        caller.say(Op::Freeze { timeout_ms, serial: 7 });
        assert_eq!(caller.hear().0, Kind::Plan);
        let told = caller.told(Kind::Frozen);
        assert_eq!(told.word, 1, "{told:?}");
        caller
    }
}

struct Caller(UnixStream);

impl Caller {
    fn say(&mut self, op: Op) {
        self.0.write_all(&op.encode()).unwrap();
    }

    fn hear(&mut self) -> (Kind, Vec<u8>) {
        let mut head = [0; HEAD];
        self.0.read_exact(&mut head).unwrap();
        let (kind, length) = wire::head(head).unwrap();
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).unwrap();
        (kind, payload)
    }

    fn told(&mut self, expected: Kind) -> Told {
        let (kind, payload) = self.hear();
        assert_eq!(kind, expected);
        Told::decode(&payload).unwrap()
    }

    fn refusal(&mut self) -> WireError {
        let (kind, payload) = self.hear();
        assert_eq!(kind, Kind::Refused);
        codec::decode(&payload).unwrap()
    }
}

fn fake() -> Fake {
    Fake { table: TABLE.to_vec(), ..Fake::default() }
}

#[test]
fn it_writes_out_locks_its_memory_and_then_freezes() {
    let helped = Helped::start(fake());
    let mut caller = helped.caller();
    caller.say(Op::Freeze { timeout_ms: LONG, serial: 7 });
    let (_, plan) = caller.hear();
    assert_eq!(plan[..8], 7_u64.to_le_bytes());
    let list: Vec<FileSystem> = codec::decode(&plan[8..]).unwrap();
    let told: Vec<_> = list.iter().map(|one| (&*one.mount, one.state)).collect();
    assert_eq!(told, [(&b"/srv"[..], FsState::UNDONE), (b"/", FsState::UNDONE), (b"/proc", FsState::PSEUDO)]);
    let frozen = caller.told(Kind::Frozen);
    assert_eq!((frozen.word, frozen.standings.len()), (1, 2));
    assert_eq!(fs::read(record(helped.folder.path())).unwrap(), b"/srv\0/");
    caller.say(Op::Thaw);
    assert_eq!(caller.told(Kind::Thawed).cause(), ThawCause::ASKED);
    let log = helped.fake.log();
    assert_eq!(log[..6], ["sync /srv", "sync /", "lock", "freeze /srv", "freeze /", "thaw /"]);
    // The next caller is served when all is tidied up.
    helped.frozen(LONG).say(Op::Thaw);
}

#[test]
fn its_own_deadline_thaws_though_nobody_is_left() {
    let helped = Helped::start(fake());
    drop(helped.frozen(SHORT));
    // Whoever asks next is heard once it is over.
    let mut next = helped.caller();
    next.say(Op::Trim { minimum: 0 });
    let kind = next.hear().0;
    assert!(matches!(kind, Kind::Refused | Kind::Trimmed));
    while record(helped.folder.path()).exists() {
        thread::yield_now();
    }
    let log = helped.fake.log();
    assert!(log.ends_with(&["thaw /".into(), "thaw /srv".into(), "unlock".into()]), "{log:?}");
}

#[test]
fn a_caller_that_leaves_thaws_nothing_and_the_next_one_may() {
    let helped = Helped::start(fake());
    drop(helped.frozen(LONG));
    let mut next = helped.caller();
    next.say(Op::Status);
    let (kind, plan) = next.hear();
    assert_eq!((kind, &plan[..8]), (Kind::Plan, &7_u64.to_le_bytes()[..]));
    assert_eq!(next.told(Kind::Frozen).word, 1);
    assert!(!helped.fake.log().iter().any(|line| line.starts_with("thaw")));
    next.say(Op::Thaw);
    assert_eq!(next.told(Kind::Thawed).cause(), ThawCause::ASKED);
}

#[test]
fn a_second_freeze_is_busy_at_once_and_more_callers_than_there_is_room_for_are_closed() {
    let helped = Helped::start(fake());
    let mut first = helped.frozen(LONG);
    let mut second = helped.caller();
    second.say(Op::Freeze { timeout_ms: LONG, serial: 8 });
    assert_eq!(second.refusal().kind, ErrorKind::BUSY);
    let mut many: Vec<Caller> = (0..CALLERS).map(|_| helped.caller()).collect();
    // The last one finds no room: its connection ends. Those before it are held.
    assert_eq!(many.last_mut().unwrap().0.read(&mut [0]).unwrap(), 0);
    many[0].say(Op::Status);
    assert_eq!(many[0].hear().0, Kind::Plan);
    first.say(Op::Thaw);
    assert_eq!(first.told(Kind::Thawed).cause(), ThawCause::ASKED);
}

#[test]
fn one_that_cannot_be_frozen_leaves_nothing_frozen() {
    let helped = Helped::start(Fake { refuse: vec![("/", Errno::EBUSY)], ..fake() });
    let mut caller = helped.caller();
    caller.say(Op::Freeze { timeout_ms: LONG, serial: 7 });
    assert_eq!(caller.hear().0, Kind::Plan);
    let told = caller.told(Kind::Frozen);
    let states: Vec<_> = told.standings.iter().map(|standing| standing.state).collect();
    assert_eq!((told.word, states), (0, vec![FsState::UNDONE, FsState::FAILED]));
    assert_eq!(helped.fake.log().iter().filter(|line| line.starts_with("thaw")).count(), 1);
}

#[test]
fn a_deadline_in_the_middle_of_a_slow_freeze_thaws_what_is_frozen_at_once() {
    let helped = Helped::start(Fake { slow: Some("/"), ..fake() });
    let mut caller = helped.caller();
    caller.say(Op::Freeze { timeout_ms: SHORT, serial: 7 });
    assert_eq!(caller.hear().0, Kind::Plan);
    while !helped.fake.log().contains(&"thaw /srv".to_owned()) {
        thread::yield_now();
    }
    helped.fake.let_go();
    let told = caller.told(Kind::Frozen);
    assert_eq!((told.word, told.standings[1].state), (0, FsState::UNDONE));
    assert!(helped.fake.log().contains(&"thaw /".to_owned()), "the late one too");
}

#[test]
fn however_much_users_mount_the_answer_fits() {
    let (mut table, long) = (TABLE.to_vec(), "m".repeat(4000));
    for n in 10..2000 {
        table.extend_from_slice(format!("{n} 1 0:{n} / /home/{n}/{long} rw - fuse.{long} x rw\n").as_bytes());
    }
    let helped = Helped::start(Fake { table, ..Fake::default() });
    let mut caller = helped.caller();
    caller.say(Op::Freeze { timeout_ms: LONG, serial: 7 });
    let (_, plan) = caller.hear();
    let list: Vec<FileSystem> = codec::decode(&plan[8..]).unwrap();
    assert!(
        list.len() > 10 && plan.len() < wire::PAYLOAD as usize / 4,
        "{} of {} bytes",
        list.len(),
        plan.len()
    );
    assert_eq!(caller.told(Kind::Frozen).standings.len(), 2);
    caller.say(Op::Thaw);
}

#[test]
fn a_guest_with_nothing_to_freeze_says_so() {
    let helped =
        Helped::start(Fake { table: b"1 0 0:1 / / rw - virtiofs root rw\n".to_vec(), ..Fake::default() });
    let mut caller = helped.caller();
    caller.say(Op::Freeze { timeout_ms: LONG, serial: 7 });
    assert_eq!(caller.hear().0, Kind::Plan);
    assert_eq!(caller.refusal().kind, ErrorKind::UNSUPPORTED);
    let mut caller = helped.caller();
    caller.say(Op::Thaw);
    assert_eq!(caller.hear().0, Kind::Nothing);
}

#[test]
fn a_trim_tells_each_file_system_apart() {
    let helped = Helped::start(fake());
    let mut caller = helped.caller();
    caller.say(Op::Trim { minimum: 24 });
    let (kind, payload) = caller.hear();
    assert_eq!(kind, Kind::Trimmed);
    let reply: TrimReply = codec::decode(&payload).unwrap();
    let told: Vec<_> = reply.file_systems.iter().map(|one| (&*one.mount, one.bytes.clone().ok())).collect();
    assert_eq!(told, [(&b"/srv"[..], None), (b"/", Some(1024))]);
}

#[test]
fn what_a_killed_helper_left_is_thawed_by_the_next() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), fake());
    assert_eq!(thaw_left(&fake, folder.path()).unwrap(), 0);
    fs::write(record(folder.path()), b"/srv\0/gone\0/").unwrap();
    assert_eq!(thaw_left(&fake, folder.path()).unwrap(), 2);
    assert_eq!(fake.log(), ["thaw /", "thaw /srv"]);
    assert!(!record(folder.path()).exists());
}

//! One look at all processes, shared by all who ask at the same moment: five hundred commands that are hung up
//! together cost one reading of `/proc`, not five hundred.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::stat::Stat;

/// One process among those that belong to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Member {
    /// Its id.
    pub(crate) pid: i32,
    /// When it started, which tells it from a later one of that id.
    pub(crate) start: u64,
    /// Its process group.
    pub(crate) group: i32,
}

/// All processes at one moment; those that have ended and were not waited for are left out.
#[derive(Debug, Default)]
pub(crate) struct Snapshot(HashMap<i32, Stat>);

impl Snapshot {
    /// Reads `/proc`.
    pub(crate) fn read() -> Self {
        let stats = pids().filter_map(|pid| Some((pid, Stat::read(pid)?)));
        Self(stats.filter(|(_, stat)| !matches!(stat.state, b'Z' | b'X')).collect())
    }

    /// Whether this very process is still there.
    pub(crate) fn has(&self, member: &Member) -> bool {
        self.0.get(&member.pid).is_some_and(|stat| stat.start == member.start)
    }

    /// Every process in the leader's session, and every descendant of the leader and of those `known`.
    pub(crate) fn belonging_to(&self, leader: i32, known: &HashSet<Member>) -> Vec<Member> {
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        for (pid, stat) in &self.0 {
            children.entry(stat.parent).or_default().push(*pid);
        }
        let in_session = self.0.iter().filter(|(_, stat)| stat.session == leader).map(|(pid, _)| *pid);
        let mut next: Vec<i32> =
            in_session.chain([leader]).chain(known.iter().map(|member| member.pid)).collect();
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        while let Some(pid) = next.pop() {
            if !seen.insert(pid) {
                continue;
            }
            if let Some(stat) = self.0.get(&pid) {
                found.push(Member { pid, start: stat.start, group: stat.group });
            }
            next.extend(children.get(&pid).into_iter().flatten());
        }
        found
    }

    #[cfg(test)]
    fn of(processes: &[(i32, i32, i32)]) -> Self {
        let stat = |(pid, parent, session): (i32, i32, i32)| {
            let text =
                format!("{pid} (x) S {parent} {session} {session} 0 0 0 0 0 0 0 1 1 0 0 0 0 0 0 {pid}00 0 1");
            (pid, Stat::parse(text.as_bytes()).unwrap())
        };
        Self(processes.iter().copied().map(stat).collect())
    }
}

/// The ids of all processes that we may see.
pub(crate) fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").ok().into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Who waits for the next look.
#[derive(Debug, Default)]
pub(crate) struct Census(Rc<RefCell<Vec<oneshot::Sender<Rc<Snapshot>>>>>);

impl Census {
    /// A look that begins after this call.
    pub(crate) async fn take(&self) -> Rc<Snapshot> {
        let (answer, asked) = oneshot::channel();
        let first = {
            let mut waiting = self.0.borrow_mut();
            waiting.push(answer);
            waiting.len() == 1
        };
        if first {
            let waiting = Rc::clone(&self.0);
            tokio::task::spawn_local(async move {
                // All who wake in this turn of the loop ask before it is taken.
                tokio::task::yield_now().await;
                let asking = std::mem::take(&mut *waiting.borrow_mut());
                let snapshot = Rc::new(Snapshot::read());
                for answer in asking {
                    // Whoever no longer waits needs no answer.
                    let _ = answer.send(Rc::clone(&snapshot));
                }
            });
        }
        asked.await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(snapshot: &Snapshot, leader: i32, known: &[Member]) -> Vec<i32> {
        let known = known.iter().copied().collect();
        let mut pids: Vec<i32> =
            snapshot.belonging_to(leader, &known).iter().map(|member| member.pid).collect();
        pids.sort_unstable();
        pids
    }

    #[test]
    fn a_command_is_its_session_and_its_descendants_and_no_escaped_daemon() {
        // 10 is the leader; 11 its child; 12 a child of 11 in a session of its own; 13 an orphan of its session,
        // adopted by the worker 2; 14 a daemon that left both; 20 another command.
        let snapshot = Snapshot::of(&[
            (2, 1, 2),
            (10, 2, 10),
            (11, 10, 10),
            (12, 11, 12),
            (13, 2, 10),
            (14, 2, 14),
            (20, 2, 20),
        ]);
        assert_eq!(found(&snapshot, 10, &[]), [10, 11, 12, 13]);
        assert_eq!(found(&snapshot, 20, &[]), [20]);
    }

    #[test]
    fn who_was_known_stays_when_the_parents_are_gone() {
        let snapshot = Snapshot::of(&[(2, 1, 2), (12, 2, 12), (15, 12, 12)]);
        let known = Member { pid: 12, start: 1200, group: 12 };
        assert!(snapshot.has(&known));
        assert_eq!(found(&snapshot, 10, &[known]), [12, 15]);
        assert!(!snapshot.has(&Member { start: 1, ..known }));
    }
}

use super::*;

const BOTH: Share = Share { to_guest: true, to_host: true };
const TEXT: &str = "text/plain;charset=utf-8";

fn names(types: &[&str]) -> Vec<String> {
    types.iter().map(|name| (*name).to_owned()).collect()
}

fn offer(serial: u64, types: &[&str]) -> Offer {
    Offer { serial, selection: Selection::CLIPBOARD, types: names(types) }
}

/// A hub with these peers, each of which has said that it has nothing.
fn hub(peers: &[PeerId]) -> Hub {
    let mut hub = Hub::new();
    for id in peers {
        let told = hub.peer_came(*id, BOTH, Side::Host);
        assert_eq!(told.len(), SELECTIONS.len(), "an offer for each selection, even of nothing");
        assert_eq!(hub.peer_offered(*id, offer(1, &[])), []);
    }
    hub
}

fn told(actions: &[Action]) -> Vec<PeerId> {
    actions
        .iter()
        .filter_map(|action| if let Action::Tell(id, _) = action { Some(*id) } else { None })
        .collect()
}

fn shown(actions: &[Action]) -> Option<&Shown> {
    actions.iter().find_map(|action| if let Action::Show(shown) = action { Some(shown) } else { None })
}

#[test]
fn what_is_copied_here_is_offered_to_every_peer_and_shown_to_nobody() {
    let mut hub = hub(&[1, 2]);
    let actions = hub.desktop_changed(Selection::CLIPBOARD, names(&["TARGETS", "text/html", "TIMESTAMP"]), 0);
    assert_eq!(told(&actions), [1, 2]);
    assert_eq!(shown(&actions), None);
    let Action::Tell(_, sent) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(sent.types, ["text/html"]);
    let (owner, kind) = hub.resolve(Selection::CLIPBOARD, sent.serial, "text/html").unwrap();
    assert_eq!((owner, kind.as_str()), (Owner::Desktop, "text/html"));
    assert_eq!(hub.resolve(Selection::CLIPBOARD, sent.serial, "image/png"), None);
    assert_eq!(hub.resolve(Selection::PRIMARY, sent.serial, "text/html"), None);
}

#[test]
fn a_peers_copy_is_shown_here_and_offered_to_the_others_and_not_back() {
    let mut hub = hub(&[1, 2, 3]);
    let actions = hub.peer_offered(2, offer(9, &["text/plain"]));
    assert_eq!(told(&actions), [1, 3]);
    let shown = shown(&actions).unwrap();
    assert!(shown.types.contains(&TEXT.to_owned()), "text has all its names: {shown:?}");
    let (owner, kind) = hub.resolve(Selection::CLIPBOARD, shown.serial, TEXT).unwrap();
    assert_eq!((owner, kind.as_str()), (Owner::Peer(2, 9), "text/plain"));
}

#[test]
fn an_offer_that_was_replaced_is_not_answered_with_the_new_one() {
    let mut hub = hub(&[1]);
    let first = shown(&hub.peer_offered(1, offer(2, &[TEXT]))).unwrap().clone();
    hub.peer_offered(1, offer(3, &[TEXT]));
    assert_eq!(hub.resolve(Selection::CLIPBOARD, first.serial, TEXT), None);
}

#[test]
fn connecting_overwrites_nothing_and_fills_what_is_empty() {
    let mut hub = Hub::new();
    hub.desktop_changed(Selection::CLIPBOARD, names(&["text/html"]), 0);
    hub.peer_came(1, BOTH, Side::Host);
    assert_eq!(hub.peer_offered(1, offer(5, &[TEXT])), [], "ours stays");
    assert_eq!(hub.owner(Selection::CLIPBOARD), Owner::Desktop);
    assert!(shown(&hub.peer_offered(1, offer(6, &[TEXT]))).is_some(), "and what is copied later counts");

    let mut hub = Hub::new();
    hub.peer_came(1, BOTH, Side::Host);
    assert!(shown(&hub.peer_offered(1, offer(5, &[TEXT]))).is_some(), "nothing was here");
}

#[test]
fn a_peer_that_leaves_takes_its_copy_along_and_no_other() {
    let mut hub = hub(&[1, 2]);
    hub.peer_offered(1, offer(5, &[TEXT]));
    assert_eq!(hub.peer_offered(2, offer(6, &[])), [], "it is not 2's to give up");
    assert_eq!(hub.peer_left(2), []);
    let actions = hub.peer_left(1);
    assert_eq!(shown(&actions).unwrap().types, Vec::<String>::new());
    assert_eq!(hub.owner(Selection::CLIPBOARD), Owner::Nobody);
    assert_eq!(hub.peer_offered(1, offer(7, &[TEXT])), [], "it is no peer any more");
}

#[test]
fn each_direction_can_be_closed() {
    let mut hub = Hub::new();
    let share = Share { to_guest: true, to_host: false };
    assert_eq!(hub.peer_came(1, share, Side::Guest), [], "nothing goes to that host");
    hub.peer_offered(1, offer(1, &[]));
    assert_eq!(hub.desktop_changed(Selection::CLIPBOARD, names(&[TEXT]), 0), []);
    assert!(shown(&hub.peer_offered(1, offer(2, &[TEXT]))).is_some());
    let mut hub = Hub::new();
    hub.peer_came(1, share, Side::Host);
    assert_eq!(
        (hub.peer_offered(1, offer(1, &[])), hub.peer_offered(1, offer(2, &[TEXT]))),
        (vec![], vec![])
    );
    assert!(hub.is_told(1) && !hub.is_told(2));
}

#[test]
fn numbers_of_offers_only_grow_and_a_new_desktop_is_shown_what_others_have() {
    let mut hub = hub(&[1, 2]);
    let mut last = 0;
    let mut grows = |actions: Vec<Action>| {
        for action in actions {
            if let Action::Tell(2, offer) = action {
                assert!(offer.serial > last, "{} after {last}", offer.serial);
                last = offer.serial;
            }
        }
    };
    grows(hub.desktop_changed(Selection::PRIMARY, names(&[TEXT]), 0));
    grows(hub.desktop_changed(Selection::CLIPBOARD, names(&[TEXT]), 0));
    grows(hub.desktop_gone());
    grows(hub.peer_offered(1, offer(5, &[TEXT])));
    assert!(matches!(hub.desktop_empty(Selection::CLIPBOARD), Some(Action::Show(_))));
    assert_eq!(hub.desktop_empty(Selection::PRIMARY), None);
    grows(hub.kept(Selection::CLIPBOARD, names(&["image/png"])));
    assert_eq!(hub.owner(Selection::CLIPBOARD), Owner::Kept);
}

#[test]
fn what_a_program_did_before_it_saw_what_it_was_told_to_show_is_over() {
    let mut hub = hub(&[1]);
    let first = shown(&hub.peer_offered(1, offer(2, &[TEXT]))).unwrap().serial;
    assert_eq!(hub.desktop_changed(Selection::CLIPBOARD, names(&[TEXT]), 0), [], "it crossed with the order");
    assert_eq!(hub.owner(Selection::CLIPBOARD), Owner::Peer(1, 2));
    assert_eq!(told(&hub.desktop_changed(Selection::CLIPBOARD, names(&[TEXT]), first)), [1]);
    // A new desktop has been told nothing yet.
    hub.peer_offered(1, offer(3, &[TEXT]));
    hub.desktop_gone();
    hub.desktop_came();
    assert_eq!(told(&hub.desktop_changed(Selection::CLIPBOARD, names(&[TEXT]), 0)), [1]);
}

//! Who is trusted: keys on both sides, pinned at first use, and no operation for a guest that is not the one we know.

use std::os::unix::fs::PermissionsExt;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::handshake::machine_digest;
use hospes_protocol::keys::SecretKey;

use crate::guest::Guest;
use crate::home::{Home, text};

fn home() -> (Home, Guest) {
    let (home, guest) = (Home::new(), Guest::start());
    home.add("dev", &guest);
    home.good(["exec", "dev", "true"]);
    (home, guest)
}

#[test]
fn another_key_gets_nothing_from_us_until_it_is_accepted() {
    let (home, guest) = home();
    let (old, new) = {
        let mut state = guest.state.lock().unwrap();
        let old = state.key.public();
        state.key = SecretKey::from_bytes(&[9; 32]);
        (old.fingerprint(), state.key.public().fingerprint())
    };
    let before = guest.count(|counts| &counts.client_auths);
    let output = home.run(["exec", "dev", "true"]);
    assert_eq!(output.status.code(), Some(125));
    let told = text(&output.stderr);
    assert!(told.contains(&old) && told.contains(&new) && told.contains("hospes forget dev"), "{told}");
    assert_eq!(guest.count(|counts| &counts.client_auths), before, "our proof went to an unknown guest");
    assert_eq!(guest.count(|counts| &counts.operations), 1);
    home.good(["forget", "dev"]);
    home.good(["exec", "dev", "true"]);
}

#[test]
fn a_clone_is_told_as_one() {
    let (home, guest) = home();
    {
        let mut state = guest.state.lock().unwrap();
        state.key = SecretKey::from_bytes(&[9; 32]);
        state.machine = machine_digest("clone");
    }
    let told = text(&home.run(["exec", "dev", "true"]).stderr);
    assert!(told.contains("Another machine answers as dev") && told.contains("clone"), "{told}");
}

#[test]
fn a_guest_that_refuses_us_is_quoted() {
    let (home, guest) = home();
    let refusal =
        WireError::new(ErrorKind::UNTRUSTED, "This guest trusts SHA256:aa, not SHA256:bb").hint("Do this");
    guest.state.lock().unwrap().refuse = Some(refusal);
    let output = home.run(["exec", "dev", "true", "--json"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).starts_with("Error: "), "the option was the guest command's");
    assert!(text(&output.stderr).contains("not SHA256:bb") && text(&output.stderr).contains("Do this"));
}

#[test]
fn an_exposed_key_of_ours_is_not_used() {
    let (home, guest) = home();
    let key = home.path().join("data/hospes/host.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let before = guest.count(|counts| &counts.handshakes);
    let output = home.run(["exec", "dev", "true"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("chmod 600"), "{}", text(&output.stderr));
    assert_eq!(guest.count(|counts| &counts.handshakes), before);
}

#[test]
fn removing_a_vm_forgets_its_key() {
    let (home, guest) = home();
    home.good(["remove", "dev"]);
    guest.state.lock().unwrap().key = SecretKey::from_bytes(&[9; 32]);
    home.add("dev", &guest);
    home.good(["exec", "dev", "true"]);
    assert_eq!(home.run(["remove", "nosuch"]).status.code(), Some(125));
}

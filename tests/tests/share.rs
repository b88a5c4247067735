//! Shared folders in a booted guest: what one side does, the other sees.

use std::fs;

use anyhow::Result;
use integration_tests::{Guest, GuestSpec};

const MOUNT: &str = "mkdir -p /mnt/hospes && mount -t virtiofs hospes /mnt/hospes";

#[test]
fn a_share_is_a_file_system_of_its_own_and_both_sides_see_what_either_does() -> Result<()> {
    let host = tempfile::tempdir()?;
    fs::write(host.path().join("from-host"), "hello\n")?;
    let guest = Guest::boot(GuestSpec::new("share").folders([format!("src={}", host.path().display())]))?;
    guest.check(MOUNT)?;
    assert_eq!(guest.check("ls /mnt/hospes; cat /mnt/hospes/src/from-host")?, "src\nhello\n");
    guest.check("mkdir /mnt/hospes/src/d && echo back > /mnt/hospes/src/d/f && sync /mnt/hospes/src/d/f")?;
    assert_eq!(fs::read_to_string(host.path().join("d/f"))?, "back\n");
    let devices = guest.check("stat -c %d /mnt/hospes /mnt/hospes/src/. | uniq | wc -l")?;
    assert_eq!(devices.trim(), "2");

    // What programs expect of a file system.
    guest.check(
        "set -e; cd /mnt/hospes/src
         ln -s ../../../etc/passwd l; readlink l | grep -qx ../../../etc/passwd
         echo data > f; ln f g; test $(stat -c %h f) = 2; rm f; grep -qx data g
         exec 3<>g; rm g; echo more >&3; test $(stat -L -c %s /proc/self/fd/3) = 5; exec 3>&-
         truncate -s 1M sparse; fallocate -o 4M -l 4K sparse; test $(stat -c %s sparse) = 4198400
         fallocate -p -o 0 -l 64K sparse
         setfattr -n user.note -v hi sparse; test \"$(getfattr --only-values -n user.note sparse)\" = hi
         ! setfattr -n trusted.note -v hi sparse 2>/dev/null
         mkfifo p; (echo through > p &) ; grep -qx through p
         chmod 640 sparse; test $(stat -c %a sparse) = 640; touch -d @1000000000 sparse
         test $(stat -c %Y sparse) = 1000000000; test $(stat -c %u:%g sparse) = 1000:1000
         mkdir x y; touch x/1; mv x/1 y/2; mv -T y z; test -e z/2; mv --exchange x z 2>/dev/null || mv z x/
         perl -e 'open(my $f, \"+>\", \"m\") or die; print $f \"x\" x 100000' ; cp --sparse=always m n; cmp m n
         flock m true; df . | grep -q hospes; sync -f .
         for i in $(seq 500); do echo $i > many-$i; done; test $(ls many-* | wc -l) = 500; rm many-*",
    )?;
    assert_eq!(fs::metadata(host.path().join("sparse"))?.len(), 4_198_400);
    assert_eq!(fs::read(host.path().join("n"))?.len(), 100_000);

    // The host changes what the guest has read and cached.
    guest.check("cat /mnt/hospes/src/from-host")?;
    fs::write(host.path().join("from-host"), "another\n")?;
    guest.check("sleep 1.1")?;
    assert_eq!(guest.check("cat /mnt/hospes/src/from-host")?, "another\n");

    // A reset in the middle of it: the next boot mounts again.
    guest.check("systemd-run --quiet sh -c 'cd /mnt/hospes/src; while :; do date > date; done'")?;
    guest.reset()?;
    guest.check(MOUNT)?;
    assert_eq!(guest.check("cat /mnt/hospes/src/d/f")?, "back\n");
    Ok(())
}

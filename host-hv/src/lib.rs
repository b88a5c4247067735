//! Virtio devices, served to QEMU over vhost-user and to our own machine.

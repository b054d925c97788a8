//! smoke
mod world;
use world::*;
#[test]
fn smoke() {
    let mut w = World::new(Layout::default());
    w.create(0, 1);
    let f = w.frame(0);
    println!("{:?}", w.topup(Some(0), f, 8));
    let f = w.frame(8);
    w.set_status(0, 0, 32, 1);
    w.donate(0, 1, f, 4, 1);
    w.activate(0);
    w.share(0, 1, 2);
    w.host_write(f, 55);
    assert_eq!(w.guest(0, 1, None), Ok(55));
    w.unshare(0, 1, 2, 0);
    w.destroy(0);
}

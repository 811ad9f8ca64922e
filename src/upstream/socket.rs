//! The socket below a connection of Pingora's.

use std::os::fd::BorrowedFd;

use pingora_core::protocols::UniqueID;

#[allow(unsafe_code)] // Pingora shows a descriptor as a number only.
pub fn socket_of<T: UniqueID + ?Sized>(io: &T) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is that of `io`, which has it open for as long as it is borrowed.
    unsafe { BorrowedFd::borrow_raw(io.id()) }
}

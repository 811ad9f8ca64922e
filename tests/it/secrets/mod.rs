//! Keys in every place where one can stand, under a log level that hides nothing. No piece of them may come out anywhere
//! but towards the upstream that they are for.

mod canary;
mod files;
mod memory;
mod requests;

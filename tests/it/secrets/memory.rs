//! Keys in the memory of the process. Those of files are wiped once they are read; what is left of them are digests.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

use crate::support::proxy::{self, Proxy};
use crate::support::{eventually, upstream};

const PAGE: u64 = 4096;

/// How often each of the texts stands in memory that can be written to.
fn count_in_memory<const N: usize>(proxy: &Proxy, texts: [&str; N]) -> [usize; N] {
    let maps = fs::read_to_string(format!("/proc/{}/maps", proxy.id())).unwrap();
    let mut memory = File::open(format!("/proc/{}/mem", proxy.id())).unwrap();
    let mut counts = [0; N];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').unwrap();
        let [start, end] = [start, rest.split(' ').next().unwrap()]
            .map(|address| u64::from_str_radix(address, 16).unwrap());
        let bytes = used_pages(proxy, &mut memory, start, end);
        for (count, text) in counts.iter_mut().zip(texts) {
            *count += memchr::memmem::find_iter(&bytes, text).count();
        }
    }
    counts
}

/// The pages of a mapping that were ever touched, end to end: an allocator reserves far more.
fn used_pages(proxy: &Proxy, memory: &mut File, start: u64, end: u64) -> Vec<u8> {
    let mut table = File::open(format!("/proc/{}/pagemap", proxy.id())).unwrap();
    table.seek(SeekFrom::Start(start / PAGE * 8)).unwrap();
    let mut entries = Vec::new();
    table
        .take((end - start) / PAGE * 8)
        .read_to_end(&mut entries)
        .unwrap();
    let mut used = Vec::new();
    for (number, entry) in entries.chunks_exact(8).enumerate() {
        // The highest bits: present, swapped.
        if entry[7] >> 6 == 0 {
            continue;
        }
        let mut page = [0; PAGE as usize];
        memory
            .seek(SeekFrom::Start(start + number as u64 * PAGE))
            .unwrap();
        // It may have gone meanwhile.
        if memory.read_exact(&mut page).is_ok() {
            used.extend(page);
        }
    }
    used
}

fn policy(name: &str, keys: &[&str]) -> String {
    let list = keys.iter().map(|key| format!("  {key}: {{group: fast}}\n"));
    format!(
        "version: 1\ngroups:\n  {name}: {{platform: openai}}\n  fast: {{platform: openai}}\n\
         keys:\n{}",
        list.collect::<String>()
    )
}

#[test]
fn keys_of_files_are_wiped_from_memory() {
    let [first, second, refused] = ["Vq8Zk3Wx9Rj5Tn1Y", "Gd6Hs2Lf7Pb4Mc0X", "Jw1Ue5Ia9Oy3Kz7Q"];
    let upstream = upstream::json("{}").run();
    let proxy = proxy::new()
        .policy(&policy("first", &[first, "used"]))
        .upstream(&upstream)
        .run();
    let revision = || proxy.status()["policy"]["revision"].clone();
    let before = revision();
    fs::write(
        proxy.path("policy.yaml"),
        policy("second", &[second, "used"]),
    )
    .unwrap();
    eventually("the second policy", || (revision() != before).then_some(()));
    let wrong = policy("third", &[refused, "used"]) + "keys: again\n";
    fs::write(proxy.path("policy.yaml"), wrong).unwrap();
    proxy.await_stderr("not loaded");
    assert_eq!(
        proxy
            .anonymous()
            .header("x-api-key", "used")
            .get("/v1/models")
            .status,
        200
    );
    // The key that was looked at last, `used`, may still be where its digest was worked out.
    // That memory can be read at all is shown by a group's name.
    let [group, keys @ ..] = count_in_memory(&proxy, ["second", first, second, refused]);
    assert!(group > 0);
    assert_eq!(keys, [0, 0, 0]);
}

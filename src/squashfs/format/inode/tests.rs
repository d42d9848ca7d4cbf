use super::*;

const CONTEXT: InodeContext = InodeContext {
    block_size: 4096,
    inodes: 100,
    ids: 3,
    data_end: 1 << 40,
    fragments: 2,
};

fn inode(body: InodeBody) -> Inode {
    Inode {
        mode: 0o4755,
        uid_idx: 1,
        gid_idx: 2,
        mtime: 77,
        number: 9,
        nlink: 1,
        xattr: None,
        body,
    }
}

fn bodies() -> Vec<InodeBody> {
    let index: Arc<[DirectoryIndexEntry]> = [DirectoryIndexEntry {
        position: 8000,
        block: 44,
        name: b"mid".to_vec(),
    }]
    .into();
    let directory = |listing_size, index| {
        InodeBody::Directory(DirectoryBody {
            block_start: 9,
            offset: 8191,
            listing_size,
            parent: 3,
            index,
        })
    };
    let file = |start, size, sparse, fragment, blocks: &[BlockSize]| {
        InodeBody::File(FileBody {
            start,
            size,
            sparse,
            fragment,
            blocks: blocks.into(),
        })
    };
    let block = BlockSize::compressed(1000);
    vec![
        directory(0, Arc::from([])),
        directory(65_532, Arc::from([])),
        directory(65_533, Arc::from([])),
        directory(9000, index),
        file(96, 0, 0, None, &[]),
        file(96, 5000, 0, None, &[block, block]),
        file(
            96,
            5000,
            0,
            Some(FragmentRef {
                index: 1,
                offset: 5,
            }),
            &[block],
        ),
        file(1 << 32, 4096, 0, None, &[block]),
        file(96, 8192, 4096, None, &[block, BlockSize::HOLE]),
        InodeBody::Symlink(b"target".to_vec()),
        InodeBody::Symlink(vec![b'x'; MAX_SYMLINK]),
        InodeBody::BlockDevice(0x0010_0803),
        InodeBody::CharDevice(0x0501),
        InodeBody::Fifo,
        InodeBody::Socket,
    ]
}

#[test]
fn all_kinds_round_trip() {
    for body in bodies() {
        for (nlink, xattr) in [(1, None), (2, None), (3, Some(0)), (1, Some(17))] {
            let inode = Inode {
                nlink,
                xattr,
                ..inode(body.clone())
            };
            let mut bytes = Vec::new();
            inode.encode(&mut bytes);
            assert_eq!(Inode::parse(&bytes, &CONTEXT).unwrap(), inode);
            for len in 0..bytes.len().min(300) {
                assert!(
                    Inode::parse(&bytes[..len], &CONTEXT).is_err(),
                    "{inode:?} cut to {len}"
                );
            }
            let len = bytes.len();
            bytes.extend_from_slice(&[0xaa; 40]);
            let mut source = SliceSource::new(&bytes, "test");
            Inode::read(&mut source, 0, &CONTEXT).unwrap();
            assert_eq!(source.position(), len);
        }
    }
}

#[test]
fn the_basic_form_is_used_where_possible() {
    let kind = |inode: &Inode| {
        let mut bytes = Vec::new();
        inode.encode(&mut bytes);
        u16::from_le_bytes([bytes[0], bytes[1]])
    };
    let kinds: Vec<u16> = bodies()
        .into_iter()
        .map(|body| kind(&inode(body)))
        .collect();
    assert_eq!(kinds, [1, 1, 8, 8, 2, 2, 2, 9, 9, 3, 3, 4, 5, 6, 7]);
    for body in bodies() {
        let basic = inode(body);
        let with = Inode {
            xattr: Some(1),
            ..basic.clone()
        };
        assert_eq!(kind(&with), basic.kind() as u16 + 7);
        let linked = kind(&Inode {
            nlink: 2,
            ..basic.clone()
        });
        let wanted = if basic.kind() == InodeKind::File {
            9
        } else {
            kind(&basic)
        };
        assert_eq!(linked, wanted, "only a file's basic form has no link count");
    }
}

#[test]
fn any_byte_may_have_any_value() {
    for body in bodies() {
        let mut bytes = Vec::new();
        Inode {
            xattr: Some(3),
            ..inode(body)
        }
        .encode(&mut bytes);
        for at in 0..bytes.len().min(120) {
            for value in 0..=255 {
                let mut bad = bytes.clone();
                bad[at] = value;
                if let Ok(inode) = Inode::parse(&bad, &CONTEXT) {
                    let mut again = Vec::new();
                    inode.encode(&mut again);
                    assert_eq!(Inode::parse(&again, &CONTEXT).unwrap(), inode);
                }
            }
        }
    }
}

#[test]
fn memory_grows_with_the_bytes_and_not_with_the_declared_size() {
    let mut bytes = Vec::new();
    let body = FileBody {
        start: 96,
        size: MAX_BLOCKS_PER_FILE * 4096,
        sparse: 0,
        fragment: None,
        blocks: Arc::from([]),
    };
    Inode {
        nlink: 2,
        ..inode(InodeBody::File(body))
    }
    .encode(&mut bytes);
    assert!(Inode::parse(&bytes, &CONTEXT).unwrap_err().is_corrupt());
    bytes[24..32].copy_from_slice(&(i64::MAX as u64).to_le_bytes());
    assert!(matches!(
        Inode::parse(&bytes, &CONTEXT),
        Err(Error::Unsupported(_))
    ));
    bytes[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(Inode::parse(&bytes, &CONTEXT).unwrap_err().is_corrupt());
}

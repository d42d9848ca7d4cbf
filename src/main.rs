//! The `envfs` program: runs the command line and exits with its status.

fn main() {
    std::process::exit(envfs::cli::main());
}

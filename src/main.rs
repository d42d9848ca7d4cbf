//! The `envfs` program: hands over to the library and turns its answer into an exit status.

fn main() {
    std::process::exit(envfs::cli::main());
}

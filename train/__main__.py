from deberta_jax.cli.main import main

main()

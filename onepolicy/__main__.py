from onepolicy.cli import main

main()

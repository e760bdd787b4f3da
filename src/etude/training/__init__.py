"""Methods that change how a network is trained, whatever the network."""

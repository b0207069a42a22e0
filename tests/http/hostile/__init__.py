"""What rude and malicious clients do to the server, over real sockets.

Whatever a test here does, one thing must hold afterwards: the server goes on, and nothing of the
client is left in it (`siege.Siege.goes_on`).
"""

"""One machine's processes, from the outside: started, watched, judged, started again. No torch.

Read `launch` first, then `supervise`.
"""
